"""Axes: array axes of NIfTI, NRRD and MetaImage files to slices and back.

Their arrays are indexed ``(i, j, k)`` with one affine. One axis runs through the slices; of the
other two, the first becomes x and the second y. Nothing is flipped, so that the output's axes are
the input's.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.padding import LOWEST_REAL_HU, fill, find_undeclared
from medqdm.io.plausibility import Tally
from medqdm.volume import Source, Volume, check_finite

_SAME_SPACING = 1e-3  # relative


class Lattice(NamedTuple):
    """Voxels and affine as a file holds them.

    Args:
        voxels: ``(i, j, k)``.
        affine: ``(4, 4)`` LPS mm.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]


class Loaded(NamedTuple):
    """A file as it was read, before one of its axes is chosen to run through the slices.

    Args:
        lattice: voxels in HU, and where they lie.
        source: what is handed on; its warnings are those of the file.
        encoding: type of the voxels in the file.
    """

    lattice: Lattice
    source: Source
    encoding: str

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """``(3,)`` length of a step along each axis."""
        return np.linalg.norm(self.lattice.affine[:3, :3], axis=0)


def choose_slice_axis(spacing_mm: NDArray[Any], slice_axis: int | None, *, where: str) -> int:
    """The axis that runs through the slices: the one whose spacing differs from the other two.

    Args:
        spacing_mm: of the three axes.
        slice_axis: 0, 1 or 2 if the user said so.
        where: what messages call the file.

    Raises:
        MedQDMError: the spacings do not tell.
    """
    if slice_axis is not None:
        if slice_axis not in (0, 1, 2):
            raise MedQDMError(f"--slice-axis: must be 0, 1 or 2, got {slice_axis}")
        return slice_axis
    others = ((1, 2), (0, 2), (0, 1))
    odd = [
        axis
        for axis, (a, b) in enumerate(others)
        if np.isclose(spacing_mm[a], spacing_mm[b], rtol=_SAME_SPACING, atol=0)
    ]
    if len(odd) != 1:
        listing = " x ".join(f"{v:.4g}" for v in spacing_mm)
        raise MedQDMError(
            f"{where}: one axis must have a spacing of its own to be the slice axis, "
            f"got {listing} mm; say which with --slice-axis 0, 1 or 2 (2 for axial NIfTI)"
        )
    return odd[0]


def to_volume(loaded: Loaded, axis: int, *, any_values: bool = False) -> Volume:
    """Slices along ``axis``, padding found and filled, values checked.

    Args:
        loaded: the ``headers`` of its source must be a dict; ``slice_axis``, ``slice_step_mm``
            and ``padding_hu`` are added for the way back.
        axis: the slice axis.
        any_values: take values that cannot be HU too.

    Raises:
        MedQDMError: values that are not finite or cannot be HU, or a step without length.
    """
    lattice, source = loaded.lattice, loaded.source
    y, x = _in_plane(axis)
    hu = np.ascontiguousarray(lattice.voxels.transpose(axis, y, x), dtype=np.float32)
    check_finite(hu, where=source.label)
    padding, code = _take_padding_out(hu)
    tally = Tally()
    for k, image in enumerate(hu):
        tally.add(image, None if padding is None else padding[k])
    tally.check(where=source.label, any_values=any_values)
    source = replace(source, warnings=(*tally.warnings(), *source.warnings))
    columns = lattice.affine[:3, :3].T
    source.headers.update(slice_axis=axis, slice_step_mm=columns[axis], padding_hu=code)
    return Volume(
        hu=hu,
        origins_mm=lattice.affine[:3, 3] + np.arange(len(hu))[:, None] * columns[axis],
        x_step_mm=columns[x],
        y_step_mm=columns[y],
        padding=padding,
        source=source,
    )


class Place(NamedTuple):
    """Where the voxels of a file lie.

    Args:
        shape: ``(i, j, k)`` voxels.
        affine: ``(4, 4)`` LPS mm.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def corners_mm(self) -> NDArray[np.float64]:
        """``(1, 8, 3)`` outer corners: what must not move when a lattice is resampled."""
        index = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.shape], indexing="ij"))
        points = index.reshape(3, 8).T
        corners: NDArray[np.float64] = points @ self.affine[:3, :3].T + self.affine[:3, 3]
        return corners[None]


def place(source: Volume, volume: Volume) -> Place:
    """The way back: where the slices of ``volume`` lie on the axes of ``source``'s file.

    Args:
        source: the volume as it was read, of any kind; a DICOM series becomes ``(x, y, z)``.
        volume: the same slices with new pixels.

    Raises:
        MedQDMError: the slices are unevenly spaced.
    """
    axis = _slice_axis(source)
    own = source.source.headers
    affine = volume.affine
    if len(volume.hu) == 1 and isinstance(own, dict) and "slice_step_mm" in own:
        affine[:3, 2] = own["slice_step_mm"]
    y, x = _in_plane(axis)
    columns = np.empty((3, 3))
    columns[x], columns[y], columns[axis] = affine[:3, :3].T
    placed = np.eye(4)
    placed[:3, :3], placed[:3, 3] = columns.T, affine[:3, 3]
    i, j, k = (volume.shape[a] for a in np.argsort((axis, y, x)))
    return Place((i, j, k), placed)


def planes(source: Volume, volume: Volume, *, scratch: Path) -> Iterator[NDArray[np.int16]]:
    """Voxels rounded to int16, padding put back, as a file holds them: plane after plane of k.

    Memory does not grow with the number of slices.

    Args:
        source: as in ``place``.
        volume: as in ``place``.
        scratch: a folder for a temporary file, used if the slices do not lie along k.

    Yields:
        ``(j, i)`` of one k.
    """
    stored = (_stored(source, image, z) for z, image in enumerate(volume.hu))
    axis = _slice_axis(source)
    if axis == 2:
        yield from stored
        return
    with tempfile.TemporaryFile(dir=scratch) as file:
        for image in stored:
            file.write(image.tobytes())
        file.flush()
        voxels = np.memmap(file, np.int16, "r", shape=volume.shape)
        y, x = _in_plane(axis)
        for plane in voxels.transpose(np.argsort((axis, y, x))).transpose():
            yield np.ascontiguousarray(plane)


def _slice_axis(source: Volume) -> int:
    own = source.source.headers if source.source.kind in ("nifti", "itk") else {}
    return int(own.get("slice_axis", 2))


def _in_plane(axis: int) -> tuple[int, int]:
    x, y = (a for a in range(3) if a != axis)
    return y, x


def _take_padding_out(hu: NDArray[np.float32]) -> tuple[NDArray[np.bool_] | None, float | None]:
    """Fill undeclared padding in place; its mask and its value in the file."""
    padding = np.zeros(hu.shape, dtype=bool)
    code = None
    for k, image in enumerate(hu):
        found = find_undeclared(image)
        if found is not None:
            padding[k], code = found, float(image[0, 0])
            hu[k] = fill(image, found)
    return (None, None) if code is None else (padding, code)


def _stored(source: Volume, image: NDArray[np.float32], z: int) -> NDArray[np.int16]:
    """A slice as the file holds it: int16, with the padding of the source's slice z."""
    if source.padding is not None:
        y, x = (new // old for new, old in zip(image.shape, source.shape[1:], strict=True))
        mask = source.padding[z].repeat(y, axis=0).repeat(x, axis=1)
        image = np.where(mask, np.float32(_padding_hu(source)), image)
    limits = np.iinfo(np.int16)
    return np.rint(image).clip(limits.min, limits.max).astype(np.int16)


def _padding_hu(source: Volume) -> float:
    """The padding code of a NIfTI or ITK file; for DICOM the lowest value that counts as HU."""
    headers = source.source.headers
    code = headers.get("padding_hu") if isinstance(headers, dict) else None
    return LOWEST_REAL_HU if code is None else float(code)
