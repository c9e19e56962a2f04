"""Options that several studies have."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from medqdm.cli.options import LARGEST_SEED, Degradation
from medqdm.errors import MedQDMError

Out = Annotated[Path, typer.Option("--out", help="Output folder.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of noise and degradation.")]
Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Slices at the most, spread over the patients."),
]
Preset = Annotated[
    Optional[Degradation],  # noqa: UP045
    typer.Option("--degradation", help="Of the slices, instead of the task's."),
]
Thresholds = Annotated[
    str, typer.Option(metavar="S,S,...", help="Thresholds of the quadtree to compare.")
]
THRESHOLDS = "0,0.03,0.06,0.09,0.15,0.3"


def one_preset(degradation: Degradation | None) -> str | None:
    """The name of the preset; None: the task's own degradation."""
    if degradation is Degradation.all:
        raise MedQDMError("--degradation: must be one preset, got all; run the study once for each")
    return None if degradation is None else degradation.value
