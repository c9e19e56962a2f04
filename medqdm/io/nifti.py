"""NIfTI: reading and writing; the only place where LPS meets RAS."""

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.openers import ImageOpener
from nibabel.volumeutils import seek_tell
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.axes import Lattice, Loaded, Place, place, planes
from medqdm.io.claims import check_nifti_claim
from medqdm.io.whole import whole_file
from medqdm.version import __version__
from medqdm.volume import Source, Volume, check_same_edges

_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_APART = 0.1  # voxels between corners; rounded headers stay below
_FLAT = 1e-3  # volume that unit steps span; a tilt of 30 degrees leaves 0.87


def load_nifti(path: Path) -> Loaded:
    """Read a three-dimensional NIfTI file with HU in it.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Raises:
        MedQDMError: damaged, not three-dimensional, or not in mm.
    """
    image, voxels = _load(path)
    header = image.header
    warnings = _place_warnings(image)
    affine = _LPS_RAS @ np.asarray(image.affine, dtype=np.float64)
    ours = bytes(header["descrip"]).startswith(b"medqdm")
    source = Source("nifti", path.name, {"header": header.copy()}, warnings, is_enhanced=ours)
    return Loaded(Lattice(voxels, affine), source, str(header.get_data_dtype()))


def _place_warnings(image: Any) -> tuple[str, ...]:
    """What the header says twice about the place, and differently."""
    header, affine = image.header, np.asarray(image.affine, dtype=np.float64)
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if not sform_code and not qform_code:
        return ("qform and sform are unset; the place in the patient is a guess",)
    if not sform_code:
        return ()
    name, other = "qform", _qform(header)
    if not qform_code:
        name, zooms = "pixdim", np.abs(np.array(header.get_zooms()[:3], dtype=np.float64))
        other = affine.copy()
        other[:3, :3] *= zooms / voxel_sizes(affine)
    if other is None:
        return ("the qform is damaged; the sform counts",)
    shape = image.shape[:3]
    apart = np.linalg.norm(Place(shape, affine).corners_mm() - Place(shape, other).corners_mm(),
                           axis=-1).max()  # fmt: skip
    if apart <= _APART * voxel_sizes(affine).min():
        return ()
    sform, form = (" x ".join(f"{v:.4g}" for v in voxel_sizes(a)) for a in (affine, other))
    return (
        f"sform and {name} disagree: spacing {sform} mm and {form} mm, "
        f"corners up to {apart:.3g} mm apart; the sform counts",
    )


def _qform(header: Any) -> NDArray[np.float64] | None:
    """The affine of the qform, set or not; None if it is damaged."""
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except Exception:  # of nibabel's many
        return None
    return qform if np.isfinite(qform).all() and min(voxel_sizes(qform)) > 0 else None


def _load(path: Path) -> tuple[Any, NDArray[np.float32]]:
    try:
        image = nibabel.load(path)
        _check_header(path, image)
        size = math.prod(image.shape)
        start = int(image.header.get_data_offset())
        check_nifti_claim(path, size, start + size * image.get_data_dtype().itemsize)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except MedQDMError:
        raise
    except Exception as error:  # of nibabel's, zlib's and numpy's many
        raise MedQDMError(
            f"{path.name}: must be a whole NIfTI file, got {type(error).__name__} on reading it; "
            "it is damaged, copy it again"
        ) from None
    return image, voxels.reshape(image.shape[:3])


def _check_header(path: Path, image: Any) -> None:
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1 or image.get_data_dtype().kind not in "iuf":
        raise MedQDMError(
            f"{path.name}: must be one three-dimensional volume of numbers, got shape "
            f"{image.shape} of {image.get_data_dtype()}; save each volume as a file of its own"
        )
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise MedQDMError(f"{path.name}: lengths must be in mm, got {unit}; convert the file first")
    if not np.isfinite(image.affine).all() or min(voxel_sizes(image.affine)) <= 0:
        raise MedQDMError(
            f"{path.name}: the affine must be finite with steps above 0, got a damaged one; "
            "repair its header"
        )
    if abs(np.linalg.det(image.affine[:3, :3] / voxel_sizes(image.affine))) < _FLAT:
        raise MedQDMError(
            f"{path.name}: the three axes of the affine must span a volume, got axes in one plane; "
            "repair its header"
        )


def write_nifti(source: Volume, volume: Volume, path: Path, *, overwrite: bool = False) -> None:
    """Write a volume as int16 NIfTI, whole or not at all.

    Args:
        source: the volume as it was read; its header, form codes and padding are carried on.
        volume: the same slices with new pixels.
        path: ``.nii`` or ``.nii.gz``.
        overwrite: whether an existing file may be replaced.

    Raises:
        MedQDMError: uneven slices, an outer edge that would move, or the file exists.
    """
    target = place(source, volume)
    expected = place(source, source).corners_mm()
    check_same_edges(expected, target.corners_mm(), where=path.name)
    with whole_file(path, overwrite=overwrite) as partial:
        header = _image(source, target).header
        with ImageOpener(partial, "wb") as file:
            header.write_to(file)
            seek_tell(file, header.get_data_offset(), write0=True)
            for plane in planes(source, volume, scratch=partial.parent):
                file.write(plane.astype(header.get_data_dtype(), copy=False).tobytes())
        written = nibabel.load(partial)
        found = Place(written.shape, _LPS_RAS @ written.affine)
        check_same_edges(expected, found.corners_mm(), where=path.name)


def _image(source: Volume, target: Place) -> Any:
    """An image with the header to write, and no voxels of its own."""
    own = source.source.headers["header"] if source.source.kind == "nifti" else None
    header = nibabel.Nifti1Header() if own is None else own.copy()
    affine = _LPS_RAS @ target.affine
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    header.set_data_dtype(np.int16)
    image = kind(np.broadcast_to(np.int16(0), target.shape), affine, header)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm", None if own is None else own.get_xyzt_units()[1])
    image.header["descrip"] = f"medqdm {__version__}, derived by AI super-resolution".encode()
    image.header["cal_min"] = image.header["cal_max"] = 0
    _set_forms(image, own, affine, target.shape)
    image.update_header()
    return image


def _set_forms(image: Any, own: Any, affine: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    """Both forms with the source's codes; each keeps what it said, on the new lattice.

    A qform cannot hold shear: its code becomes 0 then, or some readers would take the rotation
    that it holds instead.
    """
    if own is None:
        sform, qform, sform_code, qform_code = affine, affine, _SCANNER, _SCANNER
    else:
        ratio = np.array(own.get_data_shape()[:3]) / shape
        sform_code, qform_code = int(own["sform_code"]), int(own["qform_code"])
        own_qform = _qform(own)
        if own_qform is None:
            qform_code = 0
        sform = _rescaled(own.get_sform(), ratio) if sform_code else affine
        qform = affine if own_qform is None or not qform_code else _rescaled(own_qform, ratio)
    if _is_sheared(sform) and sform_code:
        qform_code = 0
    image.set_sform(sform, sform_code)
    image.set_qform(qform, qform_code)


def _rescaled(affine: NDArray[Any], ratio: NDArray[Any]) -> NDArray[np.float64]:
    """The affine of the same outer edges with each step multiplied by ``ratio``."""
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3, :3] *= ratio
    scaled[:3, 3] += affine[:3, :3] @ ((ratio - 1) / 2)
    return scaled


def _is_sheared(affine: NDArray[Any]) -> bool:
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() > 1e-4)
