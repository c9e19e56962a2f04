"""Widget: the review in a notebook, with its controls and the rating form."""

from pathlib import Path
from types import ModuleType
from typing import Any

from medqdm.errors import MedQDMError
from medqdm.review.drawing import (
    PRESETS,
    View,
    difference_limit_hu,
    render,
    render_swipe,
    to_png,
)
from medqdm.review.rating import SCORES, Rating, save_rating
from medqdm.review.series import Review
from medqdm.window import Window

MODEL, FREE = "model", "free"
SIDE_BY_SIDE, SWIPE = "side by side", "swipe"
_BLINK_MS = 600


def show(review: Review, ratings: str | Path) -> "ReviewWidget":
    """The review of a series, for the last line of a notebook cell.

    Args:
        review: what to look at.
        ratings: CSV file that the Save button appends to.

    Raises:
        MedQDMError: ipywidgets is not installed.
    """
    return ReviewWidget(review, ratings)


class ReviewWidget:
    """The review with its controls; ``controls`` holds them by name, ``root`` is what is shown.

    Args:
        review: what to look at.
        ratings: CSV file that the Save button appends to.

    Raises:
        MedQDMError: ipywidgets is not installed.
    """

    def __init__(self, review: Review, ratings: str | Path) -> None:
        widgets = _ipywidgets()
        self.review = review
        self.ratings = Path(ratings)
        self.windows = {MODEL: review.model_window, **PRESETS}
        self.image = widgets.Image(format="png", layout={"max_width": "100%"})
        self.status = widgets.Label("")
        self.controls: dict[str, Any] = {
            **_viewing_controls(widgets, review, list(self.windows)),
            **_rating_controls(widgets),
        }
        self._quiet = False
        for name in ("slice", "overlay", "layout", "split", "zoom", "x", "y", "difference_hu"):
            self.controls[name].observe(self._draw, "value")
        self.controls["preset"].observe(self._apply_preset, "value")
        self.controls["center_hu"].observe(self._leave_preset, "value")
        self.controls["width_hu"].observe(self._leave_preset, "value")
        self.controls["blink"].observe(self._blink, "value")
        self.controls["save"].on_click(self._save)
        self.root = _arrange(widgets, self.controls, self.image, self.status)
        self._draw()

    @property
    def window(self) -> Window:
        """The window on show."""
        return Window(self.controls["center_hu"].value, self.controls["width_hu"].value)

    @property
    def view(self) -> View:
        """The part of the slice on show."""
        return View(*(self.controls[name].value for name in ("zoom", "x", "y")))

    def _ipython_display_(self) -> None:
        from IPython.display import display  # noqa: PLC0415  (an optional extra)

        display(self.root)

    def _draw(self, _change: Any = None) -> None:
        if self._quiet:
            return
        at = {
            "z": self.controls["slice"].value - 1,
            "window": self.window,
            "view": self.view,
            "overlay": self.controls["overlay"].value,
        }
        if self.controls["layout"].value == SWIPE:
            figure = render_swipe(self.review, split=self.controls["split"].value, **at)
        else:
            limit = self.controls["difference_hu"].value
            figure = render(self.review, difference_hu=limit, **at)
        self.image.value = to_png(figure)

    def _apply_preset(self, _change: Any) -> None:
        window = self.windows.get(self.controls["preset"].value)
        if window is None or self._quiet:
            return
        self._quiet = True  # two sliders move, one picture is drawn
        self.controls["center_hu"].value = round(window.center_hu)
        self.controls["width_hu"].value = round(window.width_hu)
        self._quiet = False
        self._draw()

    def _leave_preset(self, _change: Any) -> None:
        if self._quiet:
            return
        self._quiet = True
        self.controls["preset"].value = FREE
        self._quiet = False
        self._draw()

    def _blink(self, _change: Any) -> None:
        self._quiet = True
        self.controls["layout"].value = SWIPE
        self.controls["split"].value = float(self.controls["blink"].value % 2)
        self._quiet = False
        self._draw()

    def _save(self, _button: Any) -> None:
        scores = {name: self.controls[name].value for name in SCORES}
        try:
            rating = Rating(
                series=self.review.label,
                slice_number=self.controls["slice"].value,
                comment=self.controls["comment"].value,
                reader=self.controls["reader"].value,
                window=self.controls["preset"].value,
                **scores,
            )
            save_rating(self.ratings, rating)
        except MedQDMError as error:
            self.status.value = str(error)
            return
        self.status.value = f"slice {rating.slice_number} saved to {self.ratings.name}"
        for name in SCORES:
            self.controls[name].value = None
        self.controls["comment"].value = ""


def _ipywidgets() -> ModuleType:
    try:
        import ipywidgets  # noqa: PLC0415  (an optional extra)
    except ImportError:
        raise MedQDMError(
            "review: ipywidgets must be installed to show controls, got none; "
            "install it with pip install 'medqdm[notebooks]'"
        ) from None
    module: ModuleType = ipywidgets
    return module


def _viewing_controls(widgets: ModuleType, review: Review, presets: list[str]) -> dict[str, Any]:
    middle = review.num_slices // 2
    limit = round(difference_limit_hu(review.at(middle)))
    window = review.model_window
    # a picture for each step of a drag would pile up behind the mouse
    late = {"continuous_update": False}
    return {
        "slice": widgets.IntSlider(
            middle + 1, 1, review.num_slices, description="slice", layout={"width": "98%"}, **late
        ),
        "preset": widgets.Dropdown(options=[*presets, FREE], value=MODEL, description="window"),
        "center_hu": widgets.IntSlider(
            round(window.center_hu), -1024, 3071, description="centre HU", **late
        ),
        "width_hu": widgets.IntSlider(
            round(window.width_hu),
            1,
            max(4096, round(window.width_hu)),
            description="width HU",
            **late,
        ),
        "zoom": widgets.FloatSlider(1, min=1, max=16, step=0.25, description="zoom", **late),
        "x": widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="pan x", **late),
        "y": widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="pan y", **late),
        "difference_hu": widgets.IntSlider(
            limit, 5, max(1000, limit), step=5, description="diff. HU", **late
        ),
        "overlay": widgets.Checkbox(value=True, description="refined regions", indent=False),
        "layout": widgets.ToggleButtons(options=[SIDE_BY_SIDE, SWIPE], description="show"),
        "split": widgets.FloatSlider(0.5, min=0, max=1, step=0.02, description="swipe", **late),
        "blink": widgets.Play(
            value=0, min=0, max=1, interval=_BLINK_MS, repeat=True, description="blink"
        ),
    }


def _rating_controls(widgets: ModuleType) -> dict[str, Any]:
    # no score is chosen beforehand: a default would pull the reader towards it
    scores = {
        name: widgets.ToggleButtons(
            options=[1, 2, 3, 4, 5],
            value=None,
            description=name,
            style={"button_width": "2.5em", "description_width": "6em"},
        )
        for name in SCORES
    }
    return {
        **scores,
        "reader": widgets.Text(description="reader", placeholder="your label"),
        "comment": widgets.Textarea(description="comment", rows=3),
        "save": widgets.Button(description="Save rating", icon="check", button_style="primary"),
    }


def _arrange(widgets: ModuleType, controls: dict[str, Any], image: Any, status: Any) -> Any:
    def column(*names: str) -> Any:
        return widgets.VBox([controls[name] for name in names])

    blink = widgets.HBox([widgets.Label("blink"), controls["blink"]])
    return widgets.VBox([
        controls["slice"],
        image,
        widgets.HBox([
            column("preset", "center_hu", "width_hu", "difference_hu"),
            column("zoom", "x", "y", "overlay"),
            widgets.VBox([controls["layout"], controls["split"], blink]),
        ]),
        widgets.HTML("<b>Rating of this slice</b> (5 is always the best)"),
        widgets.HBox([
            column(*SCORES),
            widgets.VBox([
                controls["reader"], controls["comment"],
                widgets.HBox([controls["save"], status]),
            ]),
        ]),
    ])  # fmt: skip
