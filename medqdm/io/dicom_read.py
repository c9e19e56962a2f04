"""DICOM reading: one CT series of a folder to a volume, odd ones refused or put right aloud.

Every slice is decoded once before anything else is done with the series, which finds the bad ones,
and again when it is asked for; only headers and checksums are kept in between.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqdm.errors import MedQDMError, trace
from medqdm.io.dicom_frames import Slice, read_slice
from medqdm.io.dicom_grid import is_enhanced, origins_mm, steps_mm
from medqdm.io.dicom_open import one_line_for
from medqdm.io.dicom_pixels import LOSSY_METHODS, Pixels, to_hu
from medqdm.io.dicom_scan import Scan, names_of, scan, scan_files, tolerant
from medqdm.io.dicom_stack import Stack, arrange, check_geometry, is_localizer
from medqdm.io.plausibility import Tally
from medqdm.volume import SliceStack, Source, Volume, check_finite

logger = logging.getLogger(__name__)
METAL_HU = 3000.0  # above bone and teeth
_KEPT_SLICES = 8  # decoded, for those who ask for HU and padding of the same slice in turn


def read_dicom(
    path: Path,
    *,
    series: str | None = None,
    skip_bad: bool = False,
    any_values: bool = False,
    files: Sequence[Path] | None = None,
) -> Volume:
    """Read one CT series.

    Args:
        path: a folder (searched to the bottom), a DICOMDIR or one file.
        series: SeriesInstanceUID or the end of one, needed where several CT series lie there;
            ``UID#2`` is the second acquisition of a series that holds several.
        skip_bad: leave out slices that are damaged instead of refusing the series.
        any_values: read values that cannot be HU too.
        files: those to look into, where they are known; None: all that lie there.

    Raises:
        MedQDMError: there is no CT series or more than one, or it cannot be a stack of slices in
            HU with a place in the patient.
    """
    found = scan(path) if files is None else scan_files(files)
    uid, part = _choose(found, series, where=path.name or str(path))
    label = f"series {uid}"
    if found.unopened and not skip_bad:
        names = names_of([file.name for file in found.unopened])
        raise MedQDMError(
            f"{label}: every file beside it must be readable, as it may be a slice, got "
            f"{len(found.unopened)} that cannot be opened: {names}; put their permissions right "
            "(--skip-bad leaves them out)"
        )
    with tolerant(), one_line_for(label):
        slices = found.series[uid]
        bad: list[str] = []
        if skip_bad:
            slices, bad = _leave_bad_ones_out(slices)
        stacks = arrange(slices, label=label)
        stack = _choose_stack(stacks, uid, part)
        tally = Tally()
        checked = _check_all(stack.slices, tally)
        tally.check(where=label, any_values=any_values)
        headers = tuple(item.header for item in stack.slices)
        lost = []
        _withdraw_padding(headers, checked)
        if bad:
            lost.append(f"left out {len(bad)} damaged slice(s): {names_of(bad)}")
        if found.lost:
            names = names_of([file.name for file in found.lost])
            lost.append(f"{len(found.lost)} file(s) may be slices but are damaged: {names}")
        warnings = [*stack.warnings, *_pixel_warnings(headers, checked), *tally.warnings(), *lost]
        digests = tuple(slice_.digest for slice_ in checked)
        decode = _decoder(stack.slices, digests)
        shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
        x_step, y_step = steps_mm(stack.common.header)
        padding = SliceStack(
            shape,
            np.bool_,
            lambda z: decode(z).padding.copy(),
            digests=tuple(slice_.padding_digest for slice_ in checked),
        )
        return Volume(
            hu=SliceStack(shape, np.float32, lambda z: decode(z).hu.copy(), digests=digests),
            origins_mm=origins_mm(stack.slices, stack.common),
            x_step_mm=x_step,
            y_step_mm=y_step,
            padding=padding if any(slice_.is_padded for slice_ in checked) else None,
            source=Source(
                "dicom",
                path.name or str(path),
                headers,
                tuple(warnings),
                acquisition=stack.number,
                left_out=stack.left_out + len(bad) + len(found.lost),
                losses=(*stack.losses, *lost),
                is_enhanced=is_enhanced(headers[0]),
            ),
        )


class _Checked(NamedTuple):
    """What is kept of a slice's pixels: a checksum, and what a reader should be told.

    Args:
        digest: SHA-256 of the HU.
        padding_digest: the same of the padding mask.
        is_padded: whether it holds padding, declared or not.
        is_silent: whether it holds padding that its header did not declare.
        num_measured_codes: pixels with the declared padding value that are no padding.
        high_bits: what lies above BitsStored, see ``dicom_words.Words``.
        highest_hu: the largest value.
    """

    digest: bytes
    padding_digest: bytes
    is_padded: bool
    is_silent: bool
    num_measured_codes: int
    high_bits: str
    highest_hu: float


def _leave_bad_ones_out(files: list[Slice]) -> tuple[list[Slice], list[str]]:
    """The slices that can be used, and the names of the others."""
    good, bad = [], []
    for item in files:
        try:
            if not is_localizer(item):
                check_geometry(item)
                _read_pixels(item)
            good.append(item)
        except MedQDMError as error:
            logger.debug("left out %s\n%s", item.name, trace(error))
            bad.append(item.name)
    return (good, bad) if good else (files, [])


def _check_all(slices: list[Slice], tally: Tally) -> list[_Checked]:
    """Decode every slice once and count its values.

    Raises:
        MedQDMError: some cannot be used; it says what is wrong with the first and names them all.
    """
    checked, errors = [], {}
    for item in slices:
        try:
            checked.append(_check_pixels(item, tally))
        except MedQDMError as error:
            errors[item.name] = error
    if errors:
        first = next(iter(errors.values()))
        if not checked:
            raise first
        raise MedQDMError(
            f"{first}; {len(errors)} of {len(slices)} slices are bad: {names_of(list(errors))} "
            "(--skip-bad leaves them out)"
        ) from first
    return checked


def _check_pixels(item: Slice, tally: Tally) -> _Checked:
    """Decode a slice once; its header is told what only the pixels show: padding, bits and loss."""
    dataset, pixels = _read_pixels(item)
    with one_line_for(item.name):
        tally.add(pixels.hu, pixels.padding)
        _put_header_right(item.header, dataset, pixels)
    return _Checked(
        digest=_digest(pixels.hu),
        padding_digest=_digest(pixels.padding),
        is_padded=bool(pixels.padding.any()),
        is_silent=pixels.undeclared is not None,
        num_measured_codes=pixels.num_measured_codes,
        high_bits=pixels.high_bits,
        highest_hu=float(pixels.hu.max()),
    )


def _read_pixels(item: Slice) -> tuple[Dataset, Pixels]:
    with one_line_for(item.name):
        dataset = read_slice(item)
        pixels = to_hu(dataset, where=item.name)
        check_finite(pixels.hu, where=item.name)
    return dataset, pixels


def _put_header_right(header: Dataset, dataset: Dataset, pixels: Pixels) -> None:
    """New elements, as frames of one file may share the old ones."""
    if pixels.high_bits == "values":
        header.add_new("BitsStored", "US", int(dataset.BitsAllocated))
        header.add_new("HighBit", "US", int(dataset.BitsAllocated) - 1)
    if pixels.undeclared is not None:
        vr = "SS" if dataset.PixelRepresentation else "US"
        header.add_new("PixelPaddingValue", vr, pixels.undeclared)
        header.pop("PixelPaddingRangeLimit", None)
    method = LOSSY_METHODS.get(str(dataset.file_meta.TransferSyntaxUID))
    if method and not header.get("LossyImageCompression"):
        ratio = dataset.Rows * dataset.Columns * 2 / len(dataset.PixelData)
        header.LossyImageCompression = "01"
        header.LossyImageCompressionRatio = f"{ratio:.3f}"
        header.LossyImageCompressionMethod = method


def _withdraw_padding(headers: Sequence[Dataset], checked: Sequence[_Checked]) -> None:
    """Drop a padding value that was measured only: no measured pixel may have it (C.7.5.1.1.2)."""
    if any(s.is_padded for s in checked) or not any(s.num_measured_codes for s in checked):
        return
    for header in headers:
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            header.pop(keyword, None)


def _decoder(slices: Sequence[Slice], digests: Sequence[bytes]) -> Callable[[int], Pixels]:
    """A function that decodes slice z again and refuses another content than the checked one."""

    @lru_cache(maxsize=_KEPT_SLICES)
    def decode(z: int) -> Pixels:
        name = slices[z].name
        with tolerant(), one_line_for(name):
            pixels = to_hu(read_slice(slices[z]), where=name)
        if _digest(pixels.hu) != digests[z]:
            raise MedQDMError(
                f"{name}: a CT file must not change while its series is in use, got other "
                "pixels than before; start again when the series is complete"
            )
        return pixels

    return decode


def _digest(values: NDArray[np.generic]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).data).digest()


def _choose(found: Scan, series: str | None, *, where: str) -> tuple[str, str]:
    """The UID of the series that is meant, and what stands behind its ``#``."""
    if not found.series:
        raise MedQDMError(
            f"{where}: must hold a CT series, got none ({found.why_nothing()}); "
            "give a folder with CT images"
        )
    listing = ", ".join(f"{uid} ({len(items)} slices)" for uid, items in found.series.items())
    if series is None and len(found.series) > 1:
        raise MedQDMError(
            f"{where}: must hold one CT series, got {len(found.series)}: {listing}; "
            "choose one with --series"
        )
    wanted = next(iter(found.series)) if series is None else series
    wanted, _, part = wanted.partition("#")
    meant = [uid for uid in found.series if uid == wanted]
    meant = meant or [uid for uid in found.series if wanted and uid.endswith(wanted)]
    if len(meant) != 1:
        raise MedQDMError(f"{where}: --series must be one of {listing}, got {series}")
    return meant[0], part


def _choose_stack(stacks: list[Stack], uid: str, part: str) -> Stack:
    if len(stacks) == 1 and part in ("", "1"):
        return stacks[0]
    if part.isdecimal() and 1 <= int(part) <= len(stacks):
        return stacks[int(part) - 1]
    listing = names_of(
        [f"{uid}#{s.number} ({s.name}: {len(s.slices)} slices)" if s.name else uid for s in stacks]
    )
    raise MedQDMError(
        f"series {uid}: must hold one acquisition, got {len(stacks)}: {listing}; "
        "choose one with --series"
    )


def _pixel_warnings(headers: tuple[Dataset, ...], checked: list[_Checked]) -> list[str]:
    warnings = []
    if any(h.get("LossyImageCompression") == "01" for h in headers):
        warnings.append("pixels were compressed with loss; artefacts may be sharpened")
    if any(str(h.get("BurnedInAnnotation", "")).upper() == "YES" for h in headers):
        warnings.append("text is burned into the image and will be redrawn")
    silent = sum(slice_.is_silent for slice_ in checked)
    if silent:
        warnings.append(f"{silent} slice(s) with padding that their header does not declare")
    warnings += _code_warnings(headers, checked)
    metal = sum(slice_.highest_hu > METAL_HU for slice_ in checked)
    if metal:
        highest = max(slice_.highest_hu for slice_ in checked)
        warnings.append(
            f"{metal} slice(s) with values above {METAL_HU:g} HU (up to {highest:g}); "
            "metal and its streaks may be sharpened"
        )
    return warnings


def _code_warnings(headers: tuple[Dataset, ...], checked: list[_Checked]) -> list[str]:
    """What the words hold against the header: padding values and bits."""
    warnings = []
    measured = [s.num_measured_codes for s in checked if s.num_measured_codes]
    if measured:
        warnings.append(
            f"the padding value also occurs among measured values: {sum(measured)} pixel(s) in "
            f"{len(measured)} slice(s) are not taken for padding"
        )
    more = sum(slice_.high_bits == "values" for slice_ in checked)
    if more:
        warnings.append(
            f"{more} slice(s) with values that need more bits than BitsStored; they are read from "
            "the whole words"
        )
    other = sum(slice_.high_bits == "other" for slice_ in checked)
    if other:
        warnings.append(
            f"{other} slice(s) with something above BitsStored that is no value; it is left out"
        )
    wrong = sum(h.get("HighBit", h.BitsStored - 1) != h.BitsStored - 1 for h in headers)
    if wrong:
        warnings.append(
            f"{wrong} slice(s) with a HighBit other than BitsStored - 1; it is ignored, as "
            "other readers do"
        )
    return warnings
