"""Volume: a CT stack in HU with its place in the patient.

House convention, true everywhere in medqdm: arrays are ``(z, y, x)`` float32 in Hounsfield units;
positions are LPS millimetres (DICOM's axes: x to the patient's left, y to the back, z to the head)
and mean the *centre* of a voxel. NIfTI's RAS is flipped at the border, in ``io/nifti.py`` alone.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import ArrayLike, DTypeLike, NDArray

from medqdm.errors import MedQDMError

EDGE_TOLERANCE_MM = 1e-3  # outer edges may move by 1 um at the most
ENHANCED_BEFORE = "medqdm made it: its detail is synthetic already; enhance its source instead"

Scalar = TypeVar("Scalar", bound=np.generic)


class SliceStack(NDArrayOperatorsMixin, Generic[Scalar]):
    """Slices that are read when they are asked for: memory does not grow with their number.

    It stands where a ``(z, y, x)`` array may stand. ``stack[z]`` and iteration read a slice at a
    time; ``np.asarray(stack)`` and arithmetic read them all.

    Args:
        shape: ``(z, y, x)``.
        dtype: of the voxels.
        read: index of a slice -> ``(y, x)`` of that dtype.
        digests: a checksum of each slice, if they are known; see ``slice_digests``.

    >>> stack = SliceStack((3, 2, 2), np.float32, lambda z: np.full((2, 2), z, np.float32))
    >>> stack.shape, float(stack[2, 0, 0]), float(np.asarray(stack).max())
    ((3, 2, 2), 2.0, 2.0)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: type[Scalar],
        read: Callable[[int], NDArray[Scalar]],
        *,
        digests: tuple[bytes, ...] | None = None,
    ) -> None:
        self.shape = shape
        self.ndim = 3
        self.dtype = np.dtype(dtype)
        self.digests = digests
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Scalar]]:
        return (self[z] for z in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple) and index and isinstance(index[0], int | np.integer):
            return self[index[0]][index[1:]]
        if not isinstance(index, int | np.integer):
            return np.asarray(self)[index]
        z = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= z < len(self):
            raise IndexError(f"slice index must be 0 to {len(self) - 1}, got {index}")
        return self._read(z)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a stack of slices must be read into a new array, got copy=False")
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for z, image in enumerate(self):
            whole[z] = image
        return whole

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = (np.asarray(i) if isinstance(i, SliceStack) else i for i in inputs)
        return getattr(ufunc, method)(*arrays, **options)


HU = NDArray[np.float32] | SliceStack[np.float32]
Mask = NDArray[np.bool_] | SliceStack[np.bool_]


def slice_digests(stack: HU | Mask) -> tuple[bytes, ...]:
    """SHA-256 of each slice's values; a series read from DICOM has them already."""
    if isinstance(stack, SliceStack) and stack.digests is not None:
        return stack.digests
    return tuple(hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in stack)


@dataclass(frozen=True, eq=False)
class Source:
    """Where a volume came from, as much as a writer needs to hand its metadata on.

    Args:
        kind: ``dicom``, ``nifti`` or ``itk``; ``array`` for a volume made in memory.
        label: what messages may call it: a file or folder name, never a patient's.
        headers: DICOM: one ``pydicom.Dataset`` without pixels per slice, in slice order.
            NIfTI: ``{"header": Nifti1Header, "slice_axis": int}``.
            ITK: the image's metadata dictionary and its slice axis.
        warnings: what the reader found odd, one sentence each, free of patient data.
        acquisition: which one it is of several in one DICOM series, from 1; 0 if there is one.
        left_out: DICOM images that are not in the volume though they are, or may be, slices of the
            series: damaged, or on another grid. Scouts and duplicates do not count.
        losses: why, one sentence each; they are among the warnings.
        is_enhanced: whether medqdm made it.
    """

    kind: str
    label: str
    headers: Any = None
    warnings: tuple[str, ...] = ()
    acquisition: int = 0
    left_out: int = 0
    losses: tuple[str, ...] = ()
    is_enhanced: bool = False


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack of parallel slices.

    The slices share two step vectors; each has an origin of its own, so that gaps, gantry tilt and
    uneven distances stay exact.

    Args:
        hu: voxels ``(z, y, x)`` float32 in HU, finite: an array, or a ``SliceStack`` whose reader
            vouches for finite values (DICOM series are read so).
        origins_mm: ``(z, 3)`` LPS position of the centre of voxel ``[k, 0, 0]`` of each slice.
        x_step_mm: ``(3,)`` LPS vector from a voxel to its neighbour in x (DICOM: row direction
            times column spacing).
        y_step_mm: ``(3,)`` LPS vector from a voxel to its neighbour in y.
        padding: ``(z, y, x)`` bool, array or ``SliceStack``, True where the scanner wrote padding
            instead of a measurement (``hu`` holds a harmless filling there); None if there is none.
        source: headers and history of the file it came from.

    Raises:
        MedQDMError: a shape does not fit, a value is not finite, or a step has no length.

    >>> volume = Volume.from_spacing(np.zeros((2, 4, 4)), spacing_mm=(3.0, 0.7, 0.7))
    >>> volume.shape, volume.spacing_mm
    ((2, 4, 4), (0.7, 0.7))
    """

    hu: HU
    origins_mm: NDArray[np.float64]
    x_step_mm: NDArray[np.float64]
    y_step_mm: NDArray[np.float64]
    padding: Mask | None = None
    source: Source = Source("array", "volume")

    def __post_init__(self) -> None:
        where = self.source.label
        object.__setattr__(self, "hu", _as_hu(self.hu))
        for name in ("origins_mm", "x_step_mm", "y_step_mm"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.hu.ndim != 3 or 0 in self.hu.shape:
            raise MedQDMError(
                f"{where}: a volume must be (z, y, x) with voxels, got shape {self.hu.shape}"
            )
        expected = {"origins_mm": (len(self.hu), 3), "x_step_mm": (3,), "y_step_mm": (3,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise MedQDMError(
                    f"{where}: {name} must be {shape} finite millimetres, got shape {value.shape}; "
                    "the geometry in its header is damaged"
                )
        if min(self.spacing_mm) <= 0:
            raise MedQDMError(
                f"{where}: pixel spacing must be above 0 mm, got {self.spacing_mm}; "
                "the geometry in its header is damaged"
            )
        if isinstance(self.hu, np.ndarray):
            check_finite(self.hu, where=where)
        if self.padding is not None and self.padding.shape != self.hu.shape:
            raise MedQDMError(
                f"{where}: the padding mask must have shape {self.hu.shape}, "
                f"got {self.padding.shape}"
            )

    @classmethod
    def from_spacing(
        cls,
        hu: ArrayLike,
        spacing_mm: tuple[float, float, float],
        *,
        source: Source = Source("array", "volume"),
    ) -> "Volume":
        """An axial volume at the LPS origin.

        Args:
            hu: ``(z, y, x)`` in HU.
            spacing_mm: ``(z, y, x)`` distance of neighbouring voxel centres in mm.
            source: as in the class.
        """
        hu = np.asarray(hu, dtype=np.float32)
        z, y, x = spacing_mm
        origins = np.arange(len(hu))[:, None] * np.array([0.0, 0.0, z])
        return cls(hu, origins, np.array([x, 0.0, 0.0]), np.array([0.0, y, 0.0]), source=source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(z, y, x)`` voxels."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """In-plane ``(y, x)`` spacing in mm (DICOM PixelSpacing has this order)."""
        return float(np.linalg.norm(self.y_step_mm)), float(np.linalg.norm(self.x_step_mm))

    @property
    def z_steps_mm(self) -> NDArray[np.float64]:
        """``(z - 1, 3)`` LPS vectors between neighbouring slices."""
        return np.diff(self.origins_mm, axis=0)

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """``(z,)`` position of each slice along the normal of the slices, from LPS's origin."""
        normal = np.cross(self.x_step_mm, self.y_step_mm)
        positions: NDArray[np.float64] = self.origins_mm @ (normal / np.linalg.norm(normal))
        return positions

    @property
    def is_regular(self) -> bool:
        """Whether all slices lie one constant vector apart (to 0.01 mm): one affine fits."""
        steps = self.z_steps_mm
        return len(steps) == 0 or bool(np.ptp(steps, axis=0).max() <= 0.01)

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)`` LPS affine from voxel indices ``(x, y, z, 1)`` to mm.

        Raises:
            MedQDMError: the slices are unevenly spaced, so no single affine is true.
        """
        if not self.is_regular:
            lengths = np.linalg.norm(self.z_steps_mm, axis=1)
            raise MedQDMError(
                f"{self.source.label}: slices must be evenly spaced for one affine, got steps of "
                f"{lengths.min():.3f} to {lengths.max():.3f} mm; write DICOM instead"
            )
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = self.x_step_mm, self.y_step_mm
        if len(self.hu) > 1:
            affine[:3, 2] = (self.origins_mm[-1] - self.origins_mm[0]) / (len(self.hu) - 1)
        else:
            normal = np.cross(self.x_step_mm, self.y_step_mm)
            affine[:3, 2] = normal / np.linalg.norm(normal)
        affine[:3, 3] = self.origins_mm[0]
        return affine

    def corners_mm(self) -> NDArray[np.float64]:
        """``(z, 4, 3)`` LPS positions of each slice's outer corners (index -0.5 and n - 0.5)."""
        _, height, width = self.shape
        index = np.array([[-0.5, -0.5], [-0.5, width - 0.5], [height - 0.5, -0.5],
                          [height - 0.5, width - 0.5]])  # fmt: skip
        offsets = index[:, :1] * self.y_step_mm + index[:, 1:] * self.x_step_mm
        return self.origins_mm[:, None] + offsets[None]

    def position_mm(self, z: int, y: float, x: float) -> NDArray[np.float64]:
        """LPS position in mm of a point of slice ``z``, in voxel indices (0 = first centre)."""
        position: NDArray[np.float64] = self.origins_mm[z] + y * self.y_step_mm
        return position + x * self.x_step_mm

    def with_pixels(self, hu: ArrayLike | HU, padding: Mask | None = None) -> "Volume":
        """The same slices sampled on another in-plane grid that covers the same area.

        The step vectors shrink by the ratio of the matrix sizes and the origins move so that the
        *outer edges* stay where they are: ``origin + step * (1/scale - 1) / 2`` for each axis.

        Args:
            hu: ``(z, y', x')`` in HU, as many slices as now.
            padding: ``(z, y', x')`` bool or None.
        """
        hu = _as_hu(hu)
        if hu.ndim != 3 or len(hu) != len(self.hu):
            raise MedQDMError(
                f"{self.source.label}: new pixels must keep {len(self.hu)} slices, "
                f"got shape {hu.shape}"
            )
        ratio_y, ratio_x = self.hu.shape[1] / hu.shape[1], self.hu.shape[2] / hu.shape[2]
        shift = self.y_step_mm * (ratio_y - 1) / 2 + self.x_step_mm * (ratio_x - 1) / 2
        return replace(
            self,
            hu=hu,
            padding=padding,
            origins_mm=self.origins_mm + shift,
            x_step_mm=self.x_step_mm * ratio_x,
            y_step_mm=self.y_step_mm * ratio_y,
        )


def _as_hu(hu: ArrayLike | HU) -> HU:
    return hu if isinstance(hu, SliceStack) else np.asarray(hu, dtype=np.float32)


def check_finite(hu: NDArray[np.float32], *, where: str) -> None:
    """Refuse voxels that are no numbers.

    Args:
        hu: any shape, in HU.
        where: what the message calls them.

    Raises:
        MedQDMError: a value is NaN or infinite.
    """
    bad = np.count_nonzero(~np.isfinite(hu))
    if bad:
        raise MedQDMError(
            f"{where}: voxels must be finite HU, got {bad} NaN or infinite; "
            "repair or mask them first"
        )


def check_same_edges(before_mm: NDArray[Any], after_mm: NDArray[Any], *, where: str) -> None:
    """Refuse an output whose outer corners are not where the input's are.

    Args:
        before_mm: ``corners_mm()`` of the input, ``(z, 4, 3)``.
        after_mm: the same of the output, read back from what will be written.
        where: what the message calls the output.

    Raises:
        MedQDMError: a corner moved by more than 1 um.
    """
    moved = np.inf
    if before_mm.shape == after_mm.shape:
        moved = float(np.abs(before_mm - after_mm).max())
    if not moved <= EDGE_TOLERANCE_MM:
        raise MedQDMError(
            f"{where}: outer edges must stay within 0.001 mm, got {moved:.6f} mm; "
            "nothing was written, please report this"
        )
