"""Panels: the pictures of a report as small files, true to scale and labelled in themselves."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from medqdm.metrics import reduce_by_area
from medqdm.picture import (
    DIFFERENCE_COLORS,
    PRESETS,
    REFINED_RGB,
    SYNTHETIC,
    orientation_letters,
    scale_bar_mm,
    to_grey,
    upsample_bicubic,
)
from medqdm.volume import Volume
from medqdm.window import Window

Image = NDArray[np.float32]
Area = tuple[slice, slice]

WHOLE_PX = 420  # longer side of a picture of a whole slice
_LARGEST_CROP_PX, _SMALLEST_CROP_PX = 256, 64
_LUNG_HU, _LUNG_SHARE = (-950.0, -600.0), 0.15  # of the body, from which a slice is shown as lung
_TINT = 0.38
_JPEG_QUALITY = 86
_WHOLE_TEXT_PX, _CLOSE_TEXT_PX = 17, 13
_BODY_HU = -500.0  # between lung or air and soft tissue
UNCERTAINTY_COLORS = colormaps["cividis"]


@dataclass(frozen=True, eq=False)
class SlicePair:
    """One slice, before and after.

    Args:
        z: index from 0.
        source_hu: ``(y, x)`` in HU.
        enhanced_hu: ``(y * s, x * s)`` in HU.
        refined: ``(rows, columns)`` cells of 2 x 2 input pixels.
        deviation_hu: ``(y * s, x * s)`` in HU, if there were several draws.
    """

    z: int
    source_hu: Image
    enhanced_hu: Image
    refined: NDArray[np.bool_]
    deviation_hu: Image | None

    @property
    def upscale(self) -> int:
        """Output pixels per input pixel along an axis."""
        return self.enhanced_hu.shape[0] // self.source_hu.shape[0]

    def window(self) -> tuple[str, Window]:
        """The preset that suits the slice: lung where there is much of it, else soft tissue."""
        low, high = _LUNG_HU
        inside = self.source_hu[self.body]
        is_lung = ((inside > low) & (inside < high)).mean() >= _LUNG_SHARE
        name = "lung" if is_lung else "soft tissue"
        return name, PRESETS[name]

    @cached_property
    def body(self) -> NDArray[np.bool_]:
        """``(y, x)`` the largest thing with what it encloses, without what is thin, as a couch."""
        dense = ndimage.binary_opening(self.source_hu > _BODY_HU, iterations=2)
        parts, count = ndimage.label(dense)
        if count == 0:
            return np.ones(self.source_hu.shape, dtype=np.bool_)
        largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
        return np.asarray(ndimage.binary_fill_holes(parts == largest), dtype=np.bool_)


@dataclass(frozen=True)
class Limits:
    """Where colours end, in HU: the same for all slices of a report."""

    difference_hu: float
    deviation_hu: float


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: what it shows.
        whole: JPEG of the slice.
        close_up: PNG of a part of it, pixel for pixel.
    """

    title: str
    whole: bytes
    close_up: bytes


def make_panels(pair: SlicePair, volume: Volume, limits: Limits) -> list[Panel]:
    """A slice as source (bicubic), enhanced, difference, refined regions and uncertainty.

    Args:
        pair: the slice.
        volume: the input, for its place in the patient and the size of its pixels.
        limits: where colours end.
    """
    factor = pair.upscale
    bicubic = upsample_bicubic(pair.source_hu, factor)
    difference = pair.enhanced_hu - bicubic
    _, window = pair.window()
    refined = pair.refined.repeat(2 * factor, axis=0).repeat(2 * factor, axis=1)
    refined = refined[: bicubic.shape[0], : bicubic.shape[1]]
    spacing = volume.spacing_mm[0] / factor, volume.spacing_mm[1] / factor
    changes = np.abs(window.clip(pair.enhanced_hu) - window.clip(bicubic))
    # where nothing is refined, what else changed decides
    weights = pair.body * (0.001 + refined[::factor, ::factor])
    area = _busiest(reduce_by_area(changes, factor) * weights, factor)
    marks = _Marks(volume, spacing, area)
    layers: list[tuple[str, Image, _Look, str]] = [
        (f"Source, bicubic x{factor}", bicubic, _Look(window), ""),
        ("Enhanced", pair.enhanced_hu, _Look(window), SYNTHETIC),
        ("Enhanced minus source", difference, _Look(_around(limits.difference_hu),
                                                    DIFFERENCE_COLORS), SYNTHETIC),
        ("Refined regions", pair.enhanced_hu, _Look(window, tinted=refined), SYNTHETIC),
    ]  # fmt: skip
    if pair.deviation_hu is not None:
        look = _Look(Window(limits.deviation_hu / 2, limits.deviation_hu), UNCERTAINTY_COLORS)
        layers.append(("Uncertainty", pair.deviation_hu, look, ""))
    return [
        Panel(title, marks.whole(image, look, mark), marks.close_up(image, look, mark))
        for title, image, look, mark in layers
    ]


def limits_of(pairs: Sequence[SlicePair]) -> Limits:
    """Round limits, 10 HU or more, that 99 % of the pixels of every slice stay below."""
    differences, deviations = [0.0], [0.0]
    for pair in pairs:
        difference = pair.enhanced_hu - upsample_bicubic(pair.source_hu, pair.upscale)
        differences.append(float(np.quantile(np.abs(difference[::2, ::2]), 0.99)))
        if pair.deviation_hu is not None:
            deviations.append(float(np.quantile(pair.deviation_hu[::2, ::2], 0.99)))
    return Limits(_round_up(max(differences)), _round_up(max(deviations)))


def gradient(colors: Colormap) -> str:
    """The colours as a CSS gradient from left to right."""
    stops = (colors(share) for share in np.linspace(0, 1, 13))
    rgb = (", ".join(str(round(255 * c)) for c in stop[:3]) for stop in stops)
    return f"linear-gradient(90deg, {', '.join(f'rgb({one})' for one in rgb)})"


@dataclass(frozen=True, eq=False)
class _Look:
    """How HU become colours: 254 of a palette, black and white being kept for marks.

    Args:
        window: HU from the first colour to the last.
        colors: None: grey.
        tinted: ``(y, x)`` pixels in orange, with half as many greys; None: none.
    """

    window: Window
    colors: Colormap | None = None
    tinted: NDArray[np.bool_] | None = None

    def paint(self, hu: Image, tinted: NDArray[np.bool_] | None) -> Picture.Image:
        share = to_grey(hu, self.window).clip(0, 1)
        if tinted is None:
            index = 1 + np.rint(share * 253).astype(np.uint8)
        else:
            index = 1 + np.rint(share * 126).astype(np.uint8) + 127 * tinted.astype(np.uint8)
        picture = Picture.fromarray(index)
        picture.putpalette(self.palette())
        return picture

    def palette(self) -> list[int]:
        if self.tinted is not None:
            grey = np.linspace(0, 1, 127)[:, None].repeat(3, axis=1)
            orange = (1 - _TINT) * grey + _TINT * np.array(REFINED_RGB)
            colors = np.concatenate([grey, orange])
        else:
            colors = (self.colors or colormaps["gray"])(np.linspace(0, 1, 254))[:, :3]
        rgb = np.concatenate([[[0, 0, 0]], colors, [[1, 1, 1]]])
        return [int(value) for value in np.rint(255 * rgb).ravel()]


@dataclass(frozen=True, eq=False)
class _Marks:
    """Pictures of one slice: sizes in mm, sides of the patient, scale bar, what is synthetic.

    Args:
        volume: the input.
        spacing_mm: ``(y, x)`` of the output.
        area: of the close-up, in output pixels.
    """

    volume: Volume
    spacing_mm: tuple[float, float]
    area: Area

    def whole(self, image: Image, look: _Look, mark: str) -> bytes:
        """The slice as a JPEG."""
        size = self._size_px(image.shape)
        picture = look.paint(_resize(image, size), _resize_mask(look.tinted, size)).convert("RGB")
        rows, columns = self.area
        scale_y, scale_x = size[1] / image.shape[0], size[0] / image.shape[1]
        drawing = ImageDraw.Draw(picture)
        corners = [columns.start * scale_x, rows.start * scale_y,
                   columns.stop * scale_x - 1, rows.stop * scale_y - 1]  # fmt: skip
        drawing.rectangle(corners, outline="white")
        self._letter(drawing, size)
        self._scale(drawing, size, image.shape[1] * self.spacing_mm[1], _WHOLE_TEXT_PX)
        _write(drawing, (size[0] - 6, 5), mark, "ra", _WHOLE_TEXT_PX)
        stream = io.BytesIO()
        mode = "L" if look.colors is None and look.tinted is None else "RGB"
        picture.convert(mode).save(stream, "JPEG", quality=_JPEG_QUALITY)
        return stream.getvalue()

    def close_up(self, image: Image, look: _Look, mark: str) -> bytes:
        """The area as a PNG, every pixel of the output a block of its own."""
        crop = image[self.area]
        fine = min(self.spacing_mm)
        factor = max(1, _LARGEST_CROP_PX // max(crop.shape))
        size = (round(crop.shape[1] * factor * self.spacing_mm[1] / fine),
                round(crop.shape[0] * factor * self.spacing_mm[0] / fine))  # fmt: skip
        tinted = None if look.tinted is None else look.tinted[self.area]
        painted = look.paint(crop, tinted).resize(size, Picture.Resampling.NEAREST)
        marked = painted.convert("RGB")
        drawing = ImageDraw.Draw(marked)
        self._scale(drawing, size, crop.shape[1] * self.spacing_mm[1], _CLOSE_TEXT_PX)
        _write(drawing, (size[0] - 4, 3), mark, "ra", _CLOSE_TEXT_PX)
        stream = io.BytesIO()
        _with_marks(painted, marked).save(stream, "PNG", optimize=True)
        return stream.getvalue()

    def _size_px(self, shape: tuple[int, ...]) -> tuple[int, int]:
        height, width = shape[0] * self.spacing_mm[0], shape[1] * self.spacing_mm[1]
        unit = WHOLE_PX / max(height, width)
        return max(1, round(width * unit)), max(1, round(height * unit))

    def _letter(self, drawing: Any, size: tuple[int, int]) -> None:
        left, right = orientation_letters(self.volume.x_step_mm)
        top, bottom = orientation_letters(self.volume.y_step_mm)
        width, height = size
        for place, letters, anchor in (
            ((6, height / 2), left, "lm"),
            ((width - 6, height / 2), right, "rm"),
            ((width / 2, 5), top, "ma"),
            ((width / 2, height - 5), bottom, "md"),
        ):
            _write(drawing, place, letters, anchor, _WHOLE_TEXT_PX)

    def _scale(self, drawing: Any, size: tuple[int, int], width_mm: float, text: int) -> None:
        length = scale_bar_mm(width_mm)
        end = 8 + length / width_mm * size[0]
        base = size[1] - 8
        drawing.rectangle([7, base - 3, end + 1, base + 1], fill="black")
        drawing.rectangle([8, base - 2, end, base], fill="white")
        _write(drawing, (8, base - 5), f"{length:g} mm", "ld", text)


def _with_marks(painted: Picture.Image, marked: Picture.Image) -> Picture.Image:
    """The painted palette picture itself, but for the marks, which get its nearest colours."""
    nearest = np.asarray(marked.quantize(palette=painted, dither=Picture.Dither.NONE))
    is_mark = (np.asarray(marked) != np.asarray(painted.convert("RGB"))).any(axis=2)
    out = Picture.fromarray(np.where(is_mark, nearest, np.asarray(painted)))
    out.putpalette(painted.getpalette() or [])
    return out


def _write(drawing: Any, place: tuple[float, float], text: str, anchor: str, size: int) -> None:
    drawing.text(
        place, text, fill="white", font=_font(size), anchor=anchor, stroke_width=1,
        stroke_fill="black",
    )  # fmt: skip


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _resize(image: Image, size: tuple[int, int]) -> Image:
    """Means of HU where the picture is smaller, whole pixels where it is larger."""
    is_smaller = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    how = Picture.Resampling.BOX if is_smaller else Picture.Resampling.NEAREST
    return np.asarray(Picture.fromarray(image).resize(size, how), dtype=np.float32)


def _resize_mask(mask: NDArray[np.bool_] | None, size: tuple[int, int]) -> Any:
    if mask is None:
        return None
    picture = Picture.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.resize(size, Picture.Resampling.NEAREST), dtype=np.bool_)


def _busiest(detail: NDArray[np.floating], factor: int) -> Area:
    """The square of the output that holds the most of a map of input pixels."""
    height, width = (side * factor for side in detail.shape)
    side = min(_LARGEST_CROP_PX, max(_SMALLEST_CROP_PX, min(height, width) // 4), height, width)
    means = ndimage.uniform_filter(detail, max(1, side // factor), mode="constant")
    y, x = np.unravel_index(int(means.argmax()), means.shape)
    top = min(max(int(y) * factor + factor // 2 - side // 2, 0), height - side)
    left = min(max(int(x) * factor + factor // 2 - side // 2, 0), width - side)
    return slice(top, top + side), slice(left, left + side)


def _around(limit_hu: float) -> Window:
    return Window(0, 2 * limit_hu)


def _round_up(value: float) -> float:
    power = 10.0 ** np.floor(np.log10(max(value, 10.0)))
    return float(min(step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value)
                 * power)  # fmt: skip
