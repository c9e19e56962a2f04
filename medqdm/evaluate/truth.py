"""Truth: a known slice, where to measure on it, and how an output does there."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import metrics
from medqdm.config import Task
from medqdm.data import Pair
from medqdm.evaluate import texture
from medqdm.evaluate.calibration import calibration, stated_regions
from medqdm.evaluate.regions import body_mask
from medqdm.evaluate.seams import Borders, borders_of, seam_ratio
from medqdm.evaluate.texture import Spectrum
from medqdm.evaluate.tissue import as_shown, inner_parts, tissue_masks
from medqdm.models.perceptual import PerceptualDistance

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

WHOLE, BODY, ROI, FLAT = "whole", "body", "roi", "flat"
FLAT_SHOWN = as_shown(FLAT)
LEAST_EDGES = 20  # a slice with fewer strong edges has no median rise
LEAST_TISSUE_PX = 100  # a slice with less of a tissue says nothing of it


@dataclass(frozen=True)
class Score:
    """How one method did on one region of one slice.

    Args:
        patient: folder or file name of the patient.
        slice: number of the slice among the patient's, from 0.
        method: name of the method, or ``REFERENCE``.
        region: ``whole``, ``body``, ``roi``, ``flat``, a tissue of the truth, or one of the last
            two as shown.
        num_pixels: HR pixels of the region.
        values: metric to value; what makes no sense for the method or region is absent.
    """

    patient: str
    slice: int
    method: str
    region: str
    num_pixels: int
    values: dict[str, float]


class Truth:
    """A slice whose truth is known.

    Args:
        pair: the slice.
        task: window, factor and sizes.
        roi: ``(y, x)`` mask of the region ``roi``.
        borders: where to look for seams; None: where the task's cells, windows and tiles meet.
    """

    def __init__(
        self,
        pair: Pair,
        task: Task,
        roi: Mask | None = None,
        borders: Mapping[str, Borders] | None = None,
    ) -> None:
        self.pair = pair
        self.hr_hu, self.lr_hu = pair["hr_hu"], pair["lr_hu"]
        self.window = task.hu_window
        self.regions: dict[str, Mask | None] = {WHOLE: None, BODY: self.body}
        if roi is not None:
            self.regions[ROI] = roi
        y, x = self.lr_hu.shape
        self._borders = borders_of(task, (y, x)) if borders is None else borders
        self._input_nyquist = 0.5 / task.upscale  # in cycles per HR pixel
        self._input_pixel = task.upscale

    @cached_property
    def body(self) -> Mask:
        """``(y, x)`` body mask."""
        return body_mask(self.hr_hu, self.window)

    @cached_property
    def _edges(self) -> metrics.Edges:
        return metrics.find_edges(self.hr_hu)

    @cached_property
    def _tissues(self) -> dict[str, Mask]:
        return self._tissues_of(self.hr_hu)

    @cached_property
    def _insides(self) -> dict[str, Mask]:
        return _large(inner_parts(self._tissues, self._input_pixel))

    def _tissues_of(self, hu: Image) -> dict[str, Mask]:
        return _large(tissue_masks(hu, self.body))

    @cached_property
    def _patches(self) -> dict[str, texture.Corners]:
        found = {
            FLAT: texture.flat_patches(self.hr_hu),
            BODY: texture.patches_in(self.body),
        }
        return {region: corners for region, corners in found.items() if corners}

    def scores(
        self,
        method: str,
        sr_hu: Image,
        spectra: dict[str, Spectrum],
        known: dict[str, float],
        deviation_hu: Image | None = None,
    ) -> Iterator[Score]:
        """How an output does on every region that the slice has.

        Args:
            method: whose output.
            sr_hu: ``(y, x)`` in HU.
            spectra: of the output.
            known: values of the whole slice that are known already.
            deviation_hu: ``(y, x)`` that the output is said to have, if any.
        """
        hr_hu = self.hr_hu
        similarity = metrics.ssim_map(sr_hu, hr_hu, self.window)
        for region, mask in self.regions.items():
            if mask is not None and not mask.any():
                continue
            values = {
                "psnr_db": metrics.psnr_db(sr_hu, hr_hu, self.window, mask),
                "ssim": metrics.mean_ssim(similarity, mask),
                **self._errors(sr_hu, mask, deviation_hu),
            }
            if region == WHOLE:
                values |= self.own_values(sr_hu, spectra) | known
            if region in spectra:
                values |= self._powers(spectra[region])
            yield self._score(method, region, hr_hu.size if mask is None else mask.sum(), values)
        yield from self._flat(method, spectra)
        shown = {as_shown(tissue): mask for tissue, mask in self._tissues_of(sr_hu).items()}
        for region, mask in {**self._tissues, **shown}.items():
            errors = self._errors(sr_hu, mask, deviation_hu)
            yield self._score(method, region, mask.sum(), errors)
        for region, mask in self._insides.items():
            bias = {"bias_hu": metrics.bias_hu(sr_hu, hr_hu, mask)}
            yield self._score(method, region, mask.sum(), bias)
        yield from self._stated(method, sr_hu, deviation_hu)

    def _errors(
        self, sr_hu: Image, mask: Mask | None, deviation_hu: Image | None
    ) -> dict[str, float]:
        """Errors in HU in a region, and how they compare with the deviation, if there is one."""
        found = {
            "mae_hu": metrics.mae_hu(sr_hu, self.hr_hu, mask),
            "bias_hu": metrics.bias_hu(sr_hu, self.hr_hu, mask),
        }
        if deviation_hu is not None:
            found |= calibration(sr_hu, self.hr_hu, deviation_hu, mask)
        return found

    def _stated(self, method: str, sr_hu: Image, deviation_hu: Image | None) -> Iterator[Score]:
        if deviation_hu is None:
            return
        for region, mask in stated_regions(deviation_hu):
            values = calibration(sr_hu, self.hr_hu, deviation_hu, mask)
            yield self._score(method, region, mask.sum(), values)

    def reference_scores(self, method: str, spectra: dict[str, Spectrum]) -> Iterator[Score]:
        """What the truth itself reaches, where that is not perfection.

        Args:
            method: name of its rows.
            spectra: of the truth.
        """
        yield self._score(method, WHOLE, self.hr_hu.size, self.own_values(self.hr_hu, spectra))
        if BODY in spectra:
            yield self._score(method, BODY, self.body.sum(), self._powers(spectra[BODY]))
        yield from self._flat(method, spectra)

    def own_values(self, hu: Image, spectra: Mapping[str, Spectrum]) -> dict[str, float]:
        """What an image shows.

        LR consistency, rise of the truth's edges and of its own, number of flat squares, seams.

        Args:
            hu: ``(y, x)`` in HU.
            spectra: its own.
        """
        own = self._edges if hu is self.hr_hu else metrics.find_edges(hu)
        found = {
            "lr_consistency_hu": metrics.lr_consistency_hu(hu, self.lr_hu),
            "edge_rise_mm": self._rise_mm(hu, self._edges),
            "shown_rise_mm": self._rise_mm(hu, own),
            "flat_squares": spectra[FLAT_SHOWN].num_patches if FLAT_SHOWN in spectra else 0,
        }
        for name, borders in self._borders.items():
            found[f"seam_{name}"] = seam_ratio(hu, borders, self.body)
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _rise_mm(self, hu: Image, edges: metrics.Edges) -> float:
        if len(edges) < LEAST_EDGES:
            return math.nan
        rise_px = float(np.median(metrics.edge_rises_px(hu, edges)))
        return rise_px * self.pair["spacing_mm"]

    def spectra(self, hu: Image) -> dict[str, Spectrum]:
        """Power spectra of an image, where there are patches: flat soft tissue, as shown, the body.

        Args:
            hu: ``(y, x)`` in HU.
        """
        is_truth = hu is self.hr_hu
        shown = self._patches.get(FLAT, []) if is_truth else texture.flat_patches(hu)
        patches = self._patches | ({FLAT_SHOWN: shown} if shown else {})
        return {region: texture.spectrum(hu, found) for region, found in patches.items()}

    def _powers(self, found: Spectrum) -> dict[str, float]:
        """Variance at frequencies that the input can hold, and at those that it cannot."""
        return {
            "sd_hu": found.sd_hu,
            "power_low_hu2": found.band_hu2(0, self._input_nyquist),
            "power_high_hu2": found.band_hu2(self._input_nyquist, 1.0),
        }

    def _flat(self, method: str, spectra: Mapping[str, Spectrum]) -> Iterator[Score]:
        for region in (FLAT, FLAT_SHOWN):
            if region in spectra:
                found = spectra[region]
                num_pixels = found.num_patches * texture.PATCH_PX**2
                yield self._score(method, region, num_pixels, self._powers(found))

    def _score(self, method: str, region: str, num_pixels: int, values: dict[str, float]) -> Score:
        pair = self.pair
        return Score(pair["patient"], pair["slice"], method, region, int(num_pixels), values)


def _large(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    return {name: mask for name, mask in masks.items() if mask.sum() >= LEAST_TISSUE_PX}


def perceptual_distance(truth: Truth, sr_hu: Image, lpips: PerceptualDistance) -> float:
    """LPIPS of an output on the window.

    Args:
        truth: of the slice.
        sr_hu: ``(y, x)`` in HU.
        lpips: on the device where it is to run.
    """
    sr, hr = (
        torch.from_numpy(np.asarray(truth.window.normalize(hu), dtype=np.float32))[None, None]
        for hu in (sr_hu, truth.hr_hu)
    )
    device = lpips.shift.device
    with torch.no_grad():
        return float(lpips(sr.to(device), hr.to(device)))
