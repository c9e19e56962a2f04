"""A real browser reads a study: wheel, windows, keys, clock; and finds the answers in the file."""

import base64
import io
import shutil
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from studies.reader_study import StudyServer, make_study, read_answers, read_key

UP, DOWN, LEFT, RIGHT, ENTER, ESCAPE, BACK = (
    "\ue013", "\ue015", "\ue012", "\ue014", "\ue007", "\ue00c", "\ue003",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(exams, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser-study") / "reading"
    make_study(
        [exams / "enhanced"], folder, sources=[exams / "sources"], cases=6, stack=3, seed=4,
        slice_axis=2,
    )  # fmt: skip
    return folder


@pytest.fixture
def server(made, tmp_path):
    with StudyServer(shutil.copytree(made, tmp_path / "reading")) as server:
        yield server


@dataclass
class Page:
    """A study on a reader's screen."""

    browser: Any
    link: str

    def open(self) -> "Page":
        self.browser.get(self.link)
        self.until(lambda: self.run("Boolean(window.study)"))
        return self

    def begin(self) -> "Page":
        self.one("#go").click()
        self.until(self.shown)
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *arguments)

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def shown(self) -> str:
        return self.run("document.getElementById('stage').dataset.shown")

    def until(self, is_so: Any) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline, self.one("#message").text
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.one("#stage").send_keys(key)
        self.browser.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[0])))"
        )

    def wheel(self, side: str, notches: int) -> None:
        from selenium.webdriver import ActionChains  # noqa: PLC0415
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: PLC0415

        canvas = self.one(f"[data-panel={side}] canvas:last-child")
        for _ in range(abs(notches)):
            ActionChains(self.browser, duration=20).scroll_from_origin(
                ScrollOrigin.from_element(canvas), 0, 120 if notches > 0 else -120
            ).perform()

    def pixels(self, side: str) -> np.ndarray:
        """``(y, x, 3)`` of a picture as the browser drew it."""
        canvas = "document.querySelector(`[data-panel=${arguments[0]}] canvas`)"
        url = self.run(f"{canvas}.toDataURL()", side)
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
        return drawn[..., :3].astype(int)

    def answer(self, preference: str = LEFT, scores: str = "45342345") -> None:
        before = self.one("#place").text
        self.press(preference, *scores, ENTER)
        self.until(lambda: self.one("#place").text != before)


@pytest.fixture
def page(browser, server):
    return Page(browser, server.links["r1"]).open().begin()


def test_it_introduces_itself_without_a_complaint(browser, server):
    browser.get_log("browser")  # what an earlier page said last
    page = Page(browser, server.links["r1"]).open()
    assert page.one("#curtain").is_displayed()
    assert "may be synthetic" in page.one("#notice").text
    assert page.one("#notice").is_displayed()
    assert page.run("study.seconds()") == 0
    page.begin()
    assert not page.one("#curtain").is_displayed()
    assert page.one("#notice").is_displayed()
    assert [c.text for c in browser.find_elements("css selector", "figcaption")] == [
        "image A", "image B",
    ]  # fmt: skip
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_pair_is_read_by_keys_and_found_in_the_file(page, server, tmp_path):
    page.wheel("a", 1)
    page.until(lambda: page.shown() == "1/2")
    page.wheel("b", -1)
    page.until(lambda: page.shown() == "1/1")
    page.press("l")
    page.press("n", "5", "1", "4", "2", "3", "3", "2")
    page.press(ENTER)
    assert "Diagnostic confidence of B is missing" in page.one("#message").text
    page.press("4", "c")
    page.one("[name=comment]").send_keys("vessels, 5 of 5", ESCAPE)
    page.press(ENTER)
    page.until(lambda: "pair 2 of" in page.one("#place").text)
    (answer,) = read_answers(tmp_path / "reading" / "ratings.csv")
    trial = server.study.readers[0].trials[0]
    assert (answer.reader, answer.trial, answer.case) == ("r1", 1, trial.case)
    assert (answer.image_a, answer.image_b, answer.preference) == (trial.a, trial.b, "none")
    assert (answer.sharpness_a, answer.sharpness_b, answer.noise_a, answer.noise_b) == (5, 1, 4, 2)
    assert (answer.artefacts_a, answer.artefacts_b) == (3, 3)
    assert (answer.confidence_a, answer.confidence_b) == (2, 4)
    assert answer.comment == "vessels, 5 of 5"
    assert answer.window == "lung: L -600 W 1500"
    assert 0 < answer.seconds < 60
    arms = read_key(tmp_path / "reading").images
    assert {arms[answer.image_a].arm, arms[answer.image_b].arm} == {"bicubic", "enhanced"}


def test_it_goes_on_where_the_reader_stopped(page, server):
    page.answer()
    page.answer(RIGHT)
    place = page.one("#place").text
    page.open()
    assert page.one("#curtain-title").text == "Welcome back"
    page.begin()
    assert page.one("#place").text == place
    assert "pair 3 of" in place
    assert page.shown().startswith("3/")
    assert server.progress() == {"r1": (2, 7), "r2": (0, 7)}


def test_another_reader_has_another_order_and_the_end_is_told(browser, server, tmp_path):
    total = 7
    for reader in ("r1", "r2"):
        page = Page(browser, server.links[reader]).open().begin()
        for _ in range(total):
            page.answer("n")
        assert page.one("#curtain-title").text == "Thank you"
        assert not page.one("#go").is_displayed()
    orders = {"r1": [], "r2": []}
    for answer in read_answers(tmp_path / "reading" / "ratings.csv"):
        orders[answer.reader].append((answer.case, answer.image_a, answer.image_b))
    assert len(orders["r1"]) == len(orders["r2"]) == total
    assert orders["r1"] != orders["r2"]


def test_both_pictures_are_drawn_alike(page, server):
    """Where the arms are equal, so is what is drawn: the same window, place and marks."""
    folder = server._sites[server.study.readers[0].token]._folder
    trial = server.study.readers[0].trials[0]
    for name in (trial.a, trial.b):
        image = np.load(folder / "images" / f"{name}.npy", mmap_mode="r+")
        image[:] = np.arange(176)[None, None] * 10 - 800
        image.flush()
    page.open().begin()
    for keys in ((), ("+", "+"), ("s",), ("b",)):
        page.press(*keys)
        left, right = page.pixels("a"), page.pixels("b")
        np.testing.assert_array_equal(left, right)
        assert left.std() > 5


def test_windows_change_both(page):
    before = [page.pixels(side).mean() for side in "ab"]
    page.press("b")
    assert page.run("[study.look.window, study.look.center, study.look.width]") == [
        "bone", 400, 1800,
    ]  # fmt: skip
    after = [page.pixels(side).mean() for side in "ab"]
    assert after[0] < before[0]
    assert after[1] < before[1]
    assert page.one("#windows [data-name=bone]").get_attribute("aria-pressed") == "true"


def test_zoom_and_pan_are_one_for_both(page):
    from selenium.webdriver import ActionChains  # noqa: PLC0415

    page.press("+", "+", "+")
    canvas = page.one("[data-panel=b] canvas:last-child")
    ActionChains(page.browser, duration=20).drag_and_drop_by_offset(canvas, 60, 30).perform()
    page.press()
    look = page.run("({...study.look})")
    assert look["zoom"] == pytest.approx(1.25**3)
    assert look["x"] < 17.6
    assert look["y"] < 18
    page.press("0")
    assert page.run("study.look.zoom") == 1


def test_the_clock_stands_still_behind_the_curtain(page):
    page.until(lambda: page.run("study.seconds()") > 0.2)
    page.press("p")
    assert page.one("#curtain").is_displayed()
    before = page.run("study.seconds()")
    time.sleep(0.3)
    assert page.run("study.seconds()") == before
    page.one("#go").click()
    page.until(lambda: page.run("study.seconds()") > before)
    page.open()  # a page that is loaded again goes on counting
    assert page.run("study.seconds()") >= before


def test_answers_can_be_put_right_before_they_are_saved(page):
    page.press(LEFT, "4", BACK, "2")
    assert page.run("document.querySelector('[name=sharpness_a]:checked').value") == "2"
    page.press("3", BACK, BACK, "5")
    assert page.run("document.querySelector('[name=sharpness_a]:checked').value") == "5"
    assert page.run("document.querySelector('[name=sharpness_b]:checked').value") == "3"
    page.press(RIGHT)
    assert page.run("document.querySelector('[name=preference]:checked').value") == "b"
    page.press(UP, DOWN)
    assert page.run("document.querySelector('[name=preference]:checked').value") == "b"


def test_the_mouse_answers_too(page):
    for name in ("preference", "sharpness_a", "confidence_b"):
        page.one(f"label:has([name={name}]) span").click()
    assert page.run("[...document.querySelectorAll(':checked')].map((one) => one.name)") == [
        "preference", "sharpness_a", "confidence_b",
    ]  # fmt: skip
    assert page.run("document.querySelector('.line.due').dataset.item") == "sharpness_b"


def test_a_server_that_is_gone_costs_no_answer(browser, made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "gone")
    server = StudyServer(folder)
    page = Page(browser, server.links["r1"]).open().begin()
    server.close()
    page.press(LEFT, *"44443333", ENTER)
    page.until(lambda: "Not saved" in page.one("#message").text)
    port = int(server.links["r1"].split(":")[2].split("/")[0])
    with StudyServer(folder, port=port) as again:
        page.press(ENTER)
        page.until(lambda: "pair 2 of" in page.one("#place").text)
        assert again.progress()["r1"][0] == 1


def test_the_notice_stays_whole_on_a_small_screen(page):
    page.browser.set_window_size(900, 640)
    try:
        page.press()
        box = page.one("#notice").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.run("window.innerWidth")
        for selector in ("#save", "[data-item=confidence_b]"):
            page.run("arguments[0].scrollIntoView()", page.one(selector))
            assert page.one(selector).is_displayed()
    finally:
        page.browser.set_window_size(1400, 860)
