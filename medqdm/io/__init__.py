"""Reading and writing CT: DICOM series, NIfTI, NRRD and MetaImage."""

from collections.abc import Sequence
from pathlib import Path

from medqdm.errors import MedQDMError
from medqdm.io.axes import choose_slice_axis, to_volume
from medqdm.io.dicom_read import read_dicom
from medqdm.io.dicom_syntax import SYNTAXES
from medqdm.io.dicom_write import (
    DATES,
    SLICES_BEHIND,
    SeriesSettings,
    WriteReport,
    identify,
    write_series,
)
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, has_ending
from medqdm.io.inventory import Inventory, SeriesSummary, find_series, load_file, take_inventory
from medqdm.io.itk import write_itk
from medqdm.io.nifti import write_nifti
from medqdm.io.output import FORMATS, RUN_FILE, Output, is_complete, open_output
from medqdm.volume import Volume

__all__ = [
    "DATES",
    "FORMATS",
    "RUN_FILE",
    "SLICES_BEHIND",
    "SYNTAXES",
    "Inventory",
    "Output",
    "SeriesSettings",
    "SeriesSummary",
    "WriteReport",
    "find_series",
    "identify",
    "is_complete",
    "open_output",
    "read",
    "take_inventory",
    "write",
    "write_series",
]


def read(
    path: str | Path,
    *,
    series: str | None = None,
    slice_axis: int | None = None,
    skip_bad: bool = False,
    any_values: bool = False,
    files: Sequence[Path] | None = None,
) -> Volume:
    """Read a CT volume, of whatever kind lies there.

    Args:
        path: a folder with a DICOM series, a DICOMDIR, a DICOM file, or a ``.nii``, ``.nii.gz``,
            ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.
        series: SeriesInstanceUID or its end, where several CT series lie there; ``UID#2`` is the
            second acquisition of a series that holds several.
        slice_axis: array axis of the slices in a NIfTI, NRRD or MetaImage file, where its
            spacings do not tell.
        skip_bad: leave damaged DICOM slices out, with a warning, instead of refusing the series.
        any_values: read values that cannot be HU too: normalised ones and label maps.
        files: of a DICOM series, as its ``SeriesSummary`` lists them, so that no others are looked
            into; None: all that lie there.

    Raises:
        MedQDMError: nothing there that can be read as one stack of CT slices in HU.
    """
    path = Path(path)
    if path.is_file() and has_ending(path, (*NIFTI_ENDINGS, *ITK_ENDINGS)):
        loaded = load_file(path)
        axis = choose_slice_axis(loaded.spacing_mm, slice_axis, where=path.name)
        return to_volume(loaded, axis, any_values=any_values)
    return read_dicom(path, series=series, skip_bad=skip_bad, any_values=any_values, files=files)


def write(source: Volume, volume: Volume, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a volume as one NIfTI, NRRD or MetaImage file; ``write_series`` writes DICOM.

    Args:
        source: the volume as it was read; its metadata and padding are carried on.
        volume: the same slices with new pixels.
        path: ends in ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``.
        overwrite: whether an existing file may be replaced.

    Raises:
        MedQDMError: another ending, the file exists, or no single affine is true.
    """
    path = Path(path)
    if has_ending(path, NIFTI_ENDINGS):
        write_nifti(source, volume, path, overwrite=overwrite)
    elif has_ending(path, ITK_ENDINGS):
        write_itk(source, volume, path, overwrite=overwrite)
    else:
        raise MedQDMError(
            f"{path.name}: the output must end in .nii, .nii.gz, .nrrd or .mha, got "
            f"{path.suffix or 'no ending'}; give it one of these endings"
        )
