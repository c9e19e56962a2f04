"""A real browser looks at a review: wheels, windows, overlays, measures and reads."""

import base64
import io
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medqdm.metrics import reduce_by_area
from medqdm.review import Viewer, load_review, read_ratings

PIXEL_MM = (0.3, 0.2)  # y, x of the output


@dataclass
class Page:
    """A review on the screen."""

    browser: Any
    viewer: Viewer

    def open(self) -> "Page":
        self.browser.get(self.viewer.url)
        self.wait("axial/3")
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *arguments)

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def wait(self, shown: str) -> None:
        self.until(lambda: self.run("document.getElementById('stage')?.dataset.shown") == shown)

    def until(self, is_so: Any) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline, self.one("#message").text
            time.sleep(0.02)

    def settle(self) -> None:
        self.browser.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[0])))"
        )
        self.until(lambda: self.run("document.getElementById('stage').dataset.shown"))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.one("#stage").send_keys(key)
        self.settle()

    def at(self, panel: str, y: float, x: float) -> list[int]:
        """Client coordinates of a place in pixels of the output, as a mouse has them."""
        place = [x * PIXEL_MM[1], y * PIXEL_MM[0]]
        return [round(v) for v in self.run("review.toClient(arguments[0], arguments[1])",
                                           panel, place)]  # fmt: skip

    def mouse(self) -> Any:
        from selenium.webdriver import ActionChains  # noqa: PLC0415

        return ActionChains(self.browser, duration=20)

    def hover(self, panel: str, y: float, x: float) -> None:
        actions = self.mouse()
        actions.w3c_actions.pointer_action.move_to_location(*self.at(panel, y, x))
        actions.perform()
        self.settle()

    def drag(self, panel: str, first: tuple[float, float], last: tuple[float, float]) -> None:
        actions = self.mouse()
        pointer = actions.w3c_actions.pointer_action
        pointer.move_to_location(*self.at(panel, *first))
        pointer.pointer_down()
        pointer.move_to_location(*self.at(panel, *last))
        pointer.pointer_up()
        actions.perform()
        self.settle()

    def wheel(self, panel: str, notches: int) -> None:
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: PLC0415

        canvas = self.one(f"[data-panel={panel}] canvas:last-child")
        origin = ScrollOrigin.from_element(canvas)
        for _ in range(abs(notches)):
            self.mouse().scroll_from_origin(origin, 0, 120 if notches > 0 else -120).perform()
        self.settle()

    def value(self, name: str) -> float | None:
        text = self.run("document.getElementById(arguments[0]).dataset.value", name)
        return float(text) if text else None

    def pixels(self, panel: str) -> np.ndarray:
        """``(y, x, 4)`` of a panel's picture as the browser drew it."""
        canvas = "document.querySelector(`[data-panel=${arguments[0]}] canvas`)"
        url = self.run(f"{canvas}.toDataURL()", panel)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

    def drawn_at(self, panel: str, y: float, x: float) -> list[int]:
        """RGB on the screen at a place in pixels of the output."""
        script = (
            "(() => { const c = document.querySelector(`[data-panel=${arguments[0]}] canvas`);"
            "const b = c.getBoundingClientRect(); const [x, y] = arguments[1];"
            "return Array.from(c.getContext('2d').getImageData(x - b.left, y - b.top, 1, 1).data)"
            " })()"
        )
        return list(self.run(script, panel, self.at(panel, y, x)))[:3]


@pytest.fixture(scope="module")
def viewer(case, tmp_path_factory):
    review = load_review(case.out, case.source, slice_axis=2)
    with Viewer(review, tmp_path_factory.mktemp("ratings") / "ratings.csv") as viewer:
        yield viewer


@pytest.fixture
def page(browser, viewer):
    return Page(browser, viewer).open()


def grey(hu, center, width):
    return round(float(np.clip((hu - (center - width / 2)) / width, 0, 1)) * 255)


def test_loads_without_a_complaint_and_says_what_it_is(page, case):
    assert len(page.browser.find_elements("css selector", ".panel")) == 3
    assert "not for diagnosis" in page.one("#notice").text
    assert page.one("#notice").is_displayed()
    assert "Doe" not in page.browser.page_source
    assert str(case.out) not in page.browser.page_source
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_hu_under_the_cursor_equal_the_arrays(page, case):
    for panel, (y, x) in zip(
        ("source", "enhanced", "difference"), ((3, 5), (44, 64), (117, 170)), strict=True
    ):
        page.hover(panel, y + 0.5, x + 0.5)
        enhanced, source = case.enhanced_hu[3, y, x], case.bicubic_hu(3)[y, x]
        assert page.value("hu-enhanced") == enhanced
        assert page.value("hu-source") == pytest.approx(source, abs=1e-4)
        assert page.value("hu-difference") == pytest.approx(enhanced - source, abs=1e-3)
        assert page.value("is-refined") == case.refined[3, y // 8, x // 8]
        assert page.one("#at").text == f"column {x + 1}, row {y + 1}"


def test_wheel_and_keys_change_the_slice(page, case):
    page.wheel("enhanced", 2)
    page.wait("axial/5")
    page.hover("source", 10.5, 20.5)
    assert page.value("hu-enhanced") == case.enhanced_hu[5, 10, 20]
    page.wheel("source", -1)
    page.wait("axial/4")
    page.press("\ue010")  # End
    page.wait("axial/6")
    page.press("\ue013", "\ue013")  # up
    page.wait("axial/4")
    page.press("\ue011")  # Home
    page.wait("axial/0")


def test_windows_change_the_grey_values(page, case):
    page.press("+", "+", "+", "+", "+", "+", "+", "+", "+", "+", "+")  # pixels larger than points
    y, x = 59, 86
    presets = [(0, 2000), (-600, 1500), (40, 400), (400, 1800), (40, 80), (75, 215)]
    for key, (center, width) in enumerate(presets, 1):
        page.press(str(key))
        page.hover("source", y + 0.5, x + 0.5)
        expected = grey(case.enhanced_hu[3, y, x], center, width)
        assert page.drawn_at("enhanced", y + 0.5, x + 0.5) == pytest.approx([expected] * 3, abs=1)
    page.run("(document.getElementById('center').value = 100,"
             "document.getElementById('center').dispatchEvent(new Event('input')))")  # fmt: skip
    page.settle()
    assert page.run("[review.state.preset, review.state.center, review.state.width]") == [
        "free", 100, 215,
    ]  # fmt: skip


@pytest.mark.parametrize("zoomed", [False, True])
def test_a_known_distance_is_measured_to_a_pixel(page, zoomed):
    """Between two places that are so many pixels of 0.3 x 0.2 mm apart."""
    page.press("d", *(["+"] * 6 if zoomed else []))
    first, last = ((56, 84), (64, 92)) if zoomed else ((5, 10), (101, 140))
    page.drag("source", first, last)
    item = page.one("#measures li")
    known = np.hypot((last[0] - first[0]) * PIXEL_MM[0], (last[1] - first[1]) * PIXEL_MM[1])
    measured = float(item.get_attribute("data-mm"))
    assert measured == pytest.approx(known, abs=min(PIXEL_MM))
    assert item.text == f"distance {measured:.2f} mm"
    page.press("\ue017")  # Delete
    assert not page.browser.find_elements("css selector", "#measures li")


def test_measures_by_keys_alone_are_exact(page):
    shift, right, down, enter = "\ue008", "\ue014", "\ue015", "\ue007"
    page.press("d", enter, *[shift + right] * 5, *[shift + down] * 3, enter)
    measured = float(page.one("#measures li").get_attribute("data-mm"))
    assert measured == pytest.approx(np.hypot(5 * 0.2, 3 * 0.3))


def test_roi_has_mean_sd_and_area_of_both(page, case):
    page.press("r")
    page.drag("enhanced", (20, 20), (100, 140))
    item = page.one("#measures li")
    (measure,) = page.run("review.state.measures")
    (x0, y0), (x1, y1) = measure["a"], measure["b"]
    rows, columns = np.indices(case.enhanced_hu.shape[1:]) + 0.5
    inside = ((columns * 0.2 - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + (
        (rows * 0.3 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    ) ** 2 <= 1
    found = {name: float(item.get_attribute(f"data-{name}")) for name in (
        "area", "count", "source-mean", "source-sd", "enhanced-mean", "enhanced-sd")}  # fmt: skip
    assert found["count"] == inside.sum()
    assert found["area"] == pytest.approx(inside.sum() * 0.06)
    for name, hu in (("source", case.bicubic_hu(3)), ("enhanced", case.enhanced_hu[3])):
        chosen = hu[inside].astype(np.float64)
        assert found[f"{name}-mean"] == pytest.approx(chosen.mean(), abs=1e-3)
        assert found[f"{name}-sd"] == pytest.approx(chosen.std(), abs=1e-3)
    assert "mm²" in item.text
    page.press("\ue015")  # on another slice it is not shown
    assert not page.browser.find_elements("css selector", "#measures li")


def test_overlays_are_drawn_and_read(page, case):
    page.press("+", "+", "+", "+")
    y, x = 50, 90  # refined, in the middle
    plain = page.drawn_at("enhanced", y + 0.5, x + 0.5)
    residual = reduce_by_area(case.enhanced_hu[3], 4) - case.source_hu[3]
    expected = {
        "refined": None,
        "levels": page.run("review.facts.num_levels"),
        "uncertainty": float(case.deviation_hu[3, y, x]),
        "residual": residual[y // 4, x // 4],
    }
    source = page.drawn_at("source", y + 0.5, x + 0.5)
    for name, value in expected.items():
        page.press("o")
        assert page.run("document.getElementById('stage').dataset.overlay") == name
        page.hover("source", y + 0.5, x + 0.5)
        if value is not None:
            assert page.value("overlay-value") == pytest.approx(value, abs=1e-3)
        if name != "residual":  # near zero it is clear
            drawn = page.drawn_at("enhanced", y + 0.5, x + 0.5)
            assert drawn != plain
            assert len(set(drawn)) > 1
        assert page.drawn_at("source", y + 0.5, x + 0.5) == source
    page.press("o")
    assert page.drawn_at("enhanced", y + 0.5, x + 0.5) == plain


def test_refined_overlay_covers_its_cells_alone(page):
    page.press("o", *["+"] * 3)
    for y, x, is_refined in ((33, 60, True), (31, 60, False), (60, 95, True), (60, 97, False)):
        drawn = page.drawn_at("enhanced", y + 0.5, x + 0.5)
        assert (len(set(drawn)) > 1) == is_refined, (y, x)


def test_zoom_and_pan_move_all_panels(page):
    before = [page.at(name, 60, 88) for name in ("source", "enhanced", "difference")]
    page.press("p")
    page.drag("enhanced", (60, 88), (80, 120))
    page.press("+")
    after = [page.at(name, 60, 88) for name in ("source", "enhanced", "difference")]
    moves = np.array(after) - before
    assert np.abs(moves).min() > 5
    assert np.ptp(moves, axis=0).max() <= 1
    page.press("0")
    assert page.run("review.state.views.axial.zoom") == 1


@pytest.mark.parametrize(
    ("key", "axis", "letters"), [("c", "coronal", "RLHF"), ("s", "sagittal", "APHF")]
)
def test_planes_have_their_true_shape(page, case, key, axis, letters):
    page.press(key)
    index = {"coronal": 60, "sagittal": 88}[axis]
    page.wait(f"{axis}/{index}")
    assert page.run(f"review.facts.views.{axis}.letters.join('')") == letters
    height, width = page.run(f"review.facts.views.{axis}.size_mm")
    pixels = page.pixels("difference")[..., :3].max(axis=2) > 0
    rows, columns = np.flatnonzero(pixels.mean(axis=1) > 0.5), np.flatnonzero(pixels.any(axis=0))
    drawn = (rows.max() - rows.min() + 1) / (columns.max() - columns.min() + 1)
    assert drawn == pytest.approx(height / width, rel=0.03)
    x, y = page.run("review.toClient('enhanced', [arguments[0], arguments[1]])",
                    10.1, 1.25)  # fmt: skip
    actions = page.mouse()
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    actions.perform()
    page.settle()
    column = int(re.match(r"column (\d+), row 1", page.one("#at").text)[1]) - 1
    hu = case.enhanced_hu[6]
    assert page.value("hu-enhanced") == (
        hu[index, column] if axis == "coronal" else hu[column, index]
    )


def test_scale_bar_is_true(page):
    length_mm = float(page.one("[data-panel=enhanced]").get_attribute("data-scale-mm"))
    drawn = page.pixels("enhanced")
    row = drawn[-12, :, :3]
    bar_px = np.flatnonzero((row[: len(row) // 3] == 0xE8).all(axis=1))
    (x0, _), (x1, _) = (page.run("review.toClient('enhanced', [arguments[0], 0])", mm)
                        for mm in (0, length_mm))  # fmt: skip
    assert np.ptp(bar_px) + 1 == pytest.approx(x1 - x0, abs=1.5)


def test_swipe_shows_each_on_its_side_and_moves(page, case):
    page.press("x", "+", "+", "+", "+")
    for x, hu in ((70, case.bicubic_hu(3)), (100, case.enhanced_hu[3])):
        assert page.drawn_at("pair", 60.5, x + 0.5) == pytest.approx(
            [grey(hu[60, x], 0, 2000)] * 3, abs=1
        )
    page.press(*["["] * 10)
    assert page.run("review.state.split") == pytest.approx(0)
    assert page.drawn_at("pair", 60.5, 70.5) == pytest.approx(
        [grey(case.enhanced_hu[3, 60, 70], 0, 2000)] * 3, abs=1
    )


def test_blink_takes_turns_and_marks_what_is_synthetic(page):
    def mark():
        drawn = page.pixels("pair")[4:26, -150:, :3].reshape(-1, 3)
        return bool((drawn == [0xFF, 0xD2, 0x4A]).all(axis=1).any())

    page.press("b", " ")  # from the first space on by hand
    seen = {}
    for _ in range(2):
        seen[page.one("[data-panel=pair] figcaption").text] = mark()
        page.press(" ")
    assert seen == {"source, bicubic x4": False, "enhanced": True}


@pytest.mark.parametrize("key", ["l", "x", "b", "c", "s", "o", "+", "6"])
def test_the_notice_never_goes_away(page, key):
    page.press(key)
    notice = page.one("#notice")
    assert notice.is_displayed()
    box = notice.rect
    top = page.run("document.elementFromPoint(arguments[0], arguments[1]).id",
                   box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # fmt: skip
    assert top == "notice"


def test_the_notice_stays_whole_in_a_narrow_frame(page):
    page.browser.set_window_size(640, 600)
    try:
        page.settle()
        box = page.one("#notice").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.run("window.innerWidth")
        assert page.run("document.querySelector('#notice').scrollWidth") <= box["width"] + 1
    finally:
        page.browser.set_window_size(1400, 860)


def test_without_a_source_it_shows_the_enhanced_alone(browser, case):
    with Viewer(load_review(case.out)) as viewer:
        page = Page(browser, viewer).open()
        assert len(browser.find_elements("css selector", ".panel")) == 1
        assert "give --source" in page.one("#place").text
        page.hover("enhanced", 10.5, 20.5)
        assert page.value("hu-enhanced") == case.enhanced_hu[3, 10, 20]
        assert not page.one("#rating").is_displayed()


def test_a_rating_goes_into_the_file(page):
    names = ("sharpness", "noise", "artefacts", "confidence")
    for score, name in enumerate(names, 2):
        page.run("document.querySelector(arguments[0]).click()",
                 f"#scores input[name={name}][value='{score}']")  # fmt: skip
    page.run("(document.querySelector('[name=comment]').value = 'clear vessels')")
    page.run("document.querySelector('#rating button').click()")
    page.until(lambda: page.one("#saved").get_attribute("textContent"))
    (rating,) = read_ratings(page.viewer.ratings)
    assert [getattr(rating, name) for name in names] == [2, 3, 4, 5]
    assert (rating.comment, rating.slice_number, rating.window) == ("clear vessels", 4, "model")


def test_screenshot_shows_three_pictures(page, tmp_path):
    file = tmp_path / "page.png"
    page.browser.save_screenshot(str(file))
    picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
    boxes = [page.one(f"[data-panel={name}] canvas").rect for name in
             ("source", "enhanced", "difference")]  # fmt: skip
    for box in boxes:
        x, y = int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
        assert picture[y - 20 : y + 20, x - 20 : x + 20].std() > 5
