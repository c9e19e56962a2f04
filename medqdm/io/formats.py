"""Formats: the file name endings that tell NIfTI, NRRD and MetaImage from DICOM."""

from pathlib import Path

NIFTI_ENDINGS = (".nii", ".nii.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
SEGMENTATION_ENDINGS = (".seg.nrrd", ".seg.nii", ".seg.nii.gz", ".seg.nhdr")


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether the file's name ends so, in any case."""
    return path.name.lower().endswith(endings)
