"""NRRD and MetaImage through SimpleITK, whose world is LPS already."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  (its usual name)

from medqdm.errors import MedQDMError
from medqdm.io.axes import (
    Lattice,
    Place,
    choose_slice_axis,
    place,
    planes,
    to_volume,
)
from medqdm.io.claims import check_itk_claim, data_files
from medqdm.io.whole import whole_file
from medqdm.volume import Source, Volume, check_same_edges

_SINGLE_FILE = (".nrrd", ".mha")
_ABOUT_THE_FILE = ("ITK_", "NRRD_")  # keys that describe the lattice or the encoding read


def read_itk(path: Path, *, slice_axis: int | None = None, any_values: bool = False) -> Volume:
    """Read a three-dimensional NRRD or MetaImage file with HU in it.

    Args:
        path: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.
        slice_axis: the index axis that runs through the slices (0 = first in the file); None: the
            one with a spacing of its own.
        any_values: read values that cannot be HU too.

    Raises:
        MedQDMError: damaged, not one three-dimensional volume, or the slice axis is not clear.
    """
    try:
        image = _open(path).Execute()
    except MedQDMError:
        raise
    except Exception:  # of ITK's and its wrapper's many
        raise MedQDMError(
            f"{path.name}: must be a whole NRRD or MetaImage file, got one that cannot be read; "
            "it is damaged or its data file is missing"
        ) from None
    voxels = sitk.GetArrayFromImage(image).astype(np.float32).transpose(2, 1, 0)
    axis = choose_slice_axis(np.array(image.GetSpacing()), slice_axis, where=path.name)
    source = Source("itk", path.name, {"metadata": _metadata(image)})
    lattice = Lattice(voxels, _affine(image))
    return to_volume(lattice, axis, source=source, any_values=any_values)


def _metadata(image: Any) -> dict[str, str]:
    """Fields about something else than the file; those that are no text cannot be written again."""
    keys = image.GetMetaDataKeys()
    fields = {k: image.GetMetaData(k) for k in keys if _is_text(k)}
    return {k: v for k, v in fields.items() if _is_text(v) and not k.startswith(_ABOUT_THE_FILE)}


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open(path: Path) -> Any:
    """A reader that has seen the header, and found it true as far as sizes go."""
    data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.match(r"(\d+)-bit", kind)
    is_one = reader.GetDimension() == 3 and reader.GetNumberOfComponents() == 1
    if not is_one or bits is None or min(reader.GetSize()) < 1:
        raise MedQDMError(
            f"{path.name}: must be one three-dimensional volume of single numbers, got size "
            f"{reader.GetSize()} with {reader.GetNumberOfComponents()} value(s) each; "
            "save each volume as a file of its own"
        )
    size = math.prod(reader.GetSize())
    check_itk_claim(path, size, size * int(bits[1]) // 8)
    return reader


def write_itk(source: Volume, volume: Volume, path: Path, *, overwrite: bool = False) -> None:
    """Write a volume as int16 NRRD or MetaImage, whole or not at all.

    Args:
        source: the volume as it was read; its metadata and padding are carried on.
        volume: the same slices with new pixels.
        path: ``.nrrd`` or ``.mha``.
        overwrite: whether an existing file may be replaced.

    Raises:
        MedQDMError: uneven slices, an outer edge that would move, or the file exists.
    """
    if path.suffix.lower() not in _SINGLE_FILE:
        raise MedQDMError(
            f"{path.name}: the output must end in .nrrd or .mha, got {path.suffix or 'no ending'}; "
            "formats with a separate data file cannot appear whole"
        )
    target = place(source, volume)
    with whole_file(path, overwrite=overwrite) as partial:
        # SimpleITK cannot write in parts: the int16 voxels of this format are held in memory
        voxels = np.stack(list(planes(source, volume, scratch=partial.parent)))
        image = sitk.GetImageFromArray(voxels)
        del voxels
        steps = target.affine[:3, :3]
        spacing = np.linalg.norm(steps, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((steps / spacing).ravel().tolist())
        image.SetOrigin(target.affine[:3, 3].tolist())
        if source.source.kind == "itk":
            for key, value in source.source.headers["metadata"].items():
                image.SetMetaData(key, value)
        sitk.WriteImage(image, str(partial), useCompression=True)
        written = sitk.ImageFileReader()
        written.SetFileName(str(partial))
        written.ReadImageInformation()
        found = Place(written.GetSize(), _affine(written))
        expected = place(source, source).corners_mm()
        check_same_edges(expected, found.corners_mm(), where=path.name)


def _affine(image: Any) -> Any:
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return affine
