"""How fast the review is: ``python tests/review/speed.py [FOLDER]`` with Chromium installed.

Two series of noise, 300 slices of 512 x 512 and 60 of 2048 x 2048, are written into the folder (a
temporary one if none is given; kept and used again otherwise) and looked at in a browser without
a screen.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver

from medqdm import io
from medqdm.config import load_task
from medqdm.picture import upsample_bicubic
from medqdm.review import Viewer, load_review
from medqdm.volume import Volume

UPSCALE = 4
CASES = {"300 slices of 512 x 512": (300, 128), "60 slices of 2048 x 2048": (60, 512)}
SCRIPT = """
const [keys, done] = arguments;
const stage = document.getElementById('stage');
const frame = () => new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
(async () => {
  const times = [];
  for (const [key, pause] of keys) {
    await new Promise((go) => setTimeout(go, pause));
    const begun = performance.now();
    stage.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    await frame();
    while (!stage.dataset.shown) await frame();
    await frame();
    times.push(performance.now() - begun);
  }
  done(times);
})();
"""


def write_case(folder: Path, num_slices: int, side: int) -> None:
    random = np.random.default_rng(0)
    base = random.uniform(-900, 900, (side, side)).astype(np.float32).round()
    coarse = np.stack([np.roll(base, z, axis=1) for z in range(num_slices)])
    source = Volume.from_spacing(coarse, (2.0, 350 / side, 350 / side))
    names = {"software_version": "0", "weights_id": "0", "uid_entropy": ["0"]}
    io.write_series(source, iter(coarse), folder / "source", upscale=1, description="a", **names)
    source = io.read(folder / "source")
    fine = (upsample_bicubic(hu, UPSCALE).round() for hu in source.hu)
    io.write_series(source, fine, folder / "out", upscale=UPSCALE, description="b", **names)
    refined = random.random((num_slices, side // 2, side // 2)) < 0.2
    np.savez_compressed(folder / "out" / "refined.npz", refined=refined)
    task = load_task("sr4").model_dump(mode="json", exclude={"training"})
    (folder / "out" / "run.json").write_text(json.dumps({"task": task}))


def start_browser() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.set_window_size(1920, 1080)
    browser.set_script_timeout(300)
    return browser


def wait(browser: Any) -> None:
    while not browser.execute_script("return document.getElementById('stage')?.dataset.shown"):
        time.sleep(0.01)


def measure(folder: Path) -> dict[str, float]:
    begun = time.monotonic()
    review = load_review(folder / "out", folder / "source")
    loaded = time.monotonic()
    browser = start_browser()
    try:
        with Viewer(review) as viewer:
            opened = time.monotonic()
            browser.get(viewer.url)
            wait(browser)
            first = time.monotonic()

            def change(*keys: tuple[str, int]) -> list[float]:
                return list(browser.execute_async_script(SCRIPT, keys))

            wheel = change(*[("ArrowDown", 500)] * 15)
            jumps = change(*[("PageUp", 0)] * 12)
            window = change(("2", 300), ("3", 300), ("4", 300), ("5", 300), ("6", 300))
            (coronal,) = change(("c", 0))
            planes = change(*[("ArrowDown", 300)] * 10)
    finally:
        browser.quit()
    return {
        "reading the headers [s]": loaded - begun,
        "page to first picture [s]": first - opened,
        "next slice, half a second later [ms]": statistics.median(wheel),
        "ten slices on, at once [ms]": statistics.median(jumps[:-6]),
        "window [ms]": statistics.median(window),
        "first coronal plane [s]": coronal / 1000,
        "next plane [ms]": statistics.median(planes),
    }


def main(folder: Path) -> None:
    for name, (num_slices, side) in CASES.items():
        place = folder / f"{num_slices}x{side * UPSCALE}"
        if not (place / "out" / "run.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            write_case(place, num_slices, side)
        print(name)  # noqa: T201
        for what, value in measure(place).items():
            print(f"  {what}: {value:.3g}", flush=True)  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
