"""Options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

LARGEST_SEED = 2**63 - 1


class Format(StrEnum):
    """Output formats."""

    dicom = "dicom"
    nifti = "nifti"
    nrrd = "nrrd"
    mha = "mha"


class Sampler(StrEnum):
    """In which regions the downstream runs at which steps."""

    uniform = "uniform"
    tss = "tss"
    gain = "gain"
    groups = "groups"
    random = "random"
    upstream = "upstream"


class Syntax(StrEnum):
    """How DICOM pixels are stored, all of them without loss."""

    explicit = "explicit"
    jpeg_ls = "jpeg-ls"
    jpeg2000 = "jpeg2000"
    rle = "rle"


class Dates(StrEnum):
    """Dates of a new DICOM series."""

    now = "now"
    source = "source"


class Precision(StrEnum):
    """Precisions of the networks."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Degradation(StrEnum):
    """Presets of the degradation, or all of them in turn."""

    clean = "clean"
    paper_test = "paper-test"
    paper_train = "paper-train"
    all = "all"


Set = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this form)
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the task; repeatable."),
]
TaskName = Annotated[
    str, typer.Option("--task", help="Name of a task (see 'medqdm tasks'), or a YAML file.")
]
BundledTask = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--task", help="Task of the bundled weights; default: sr4."),
]
RunFolder = Annotated[Path, typer.Option("--out", help="Run folder; an existing run is resumed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Data = Annotated[
    Path, typer.Option("--data", help="Folder of volumes: one patient per sub-folder or file.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output folder that has files in it.")
]
Weights = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--weights", help="A medqdm weights file; default: the task's bundled one."),
]
