"""Report of the error budget: stages, what is lost between them, draws, seams."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medqdm.evaluate.detail import RATIOS
from medqdm.evaluate.document import (
    UNITS_ARE_PATIENTS,
    cell,
    heading,
    number,
    table,
    with_interval,
    write_document,
)
from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.report import results
from medqdm.evaluate.truth import BODY, WHOLE
from studies.error_decomposition.budget import (
    BICUBIC,
    DENSE,
    IN_TILES,
    MODEL,
    NO_TRANSFORMER,
    STAGES,
    TRUE_EVERYWHERE,
    TRUE_REFINED,
    TRUE_UNREFINED,
)

NAME = "budget"
LOSSES = (
    ("unrefined regions (the mask)", TRUE_EVERYWHERE, TRUE_REFINED),
    ("denoiser in refined regions", TRUE_EVERYWHERE, TRUE_UNREFINED),
    ("both together", TRUE_EVERYWHERE, MODEL),
    ("leaving out what the mask leaves out", DENSE, MODEL),
    ("cutting the slice into tiles", MODEL, IN_TILES),
    ("having no transformer", MODEL, NO_TRANSFORMER),
    ("having no network at all", MODEL, BICUBIC),
)
_METRICS = (
    ("PSNR [dB]", "psnr_db", WHOLE, ".2f"),
    ("SSIM", "ssim", WHOLE, ".4f"),
    ("MAE [HU]", "mae_hu", WHOLE, ".2f"),
    ("body PSNR [dB]", "psnr_db", BODY, ".2f"),
    ("body SSIM", "ssim", BODY, ".4f"),
)


def write_budget(
    found: Evaluation, out: Path, *, about: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write ``budget.json`` and ``budget.md`` into a folder, whole or not.

    Args:
        found: what ``measure_budget`` found.
        out: the folder to appear.
        about: what the data were, as JSON; no paths.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    write_document(
        out,
        NAME,
        data={"lost_db": losses(found), **results(found, about)},
        text=markdown(found, about),
        figures={},
        overwrite=overwrite,
    )


def losses(found: Evaluation) -> dict[str, Any]:
    """What each stage loses to decibels of PSNR, with intervals over patients."""
    return {what: found.difference("psnr_db", after, ours=before) for what, before, after in LOSSES}


def markdown(found: Evaluation, about: Mapping[str, Any]) -> str:
    """Stages, what is lost between them, draws where they were asked for, and seams."""
    task = found.settings["task"]
    lines = [
        f"# Error budget of {task['name']}, x{task['upscale']} in plane",
        "",
        heading(found.settings, sum(found.slices.values()), len(found.slices)),
        "",
        *(f"- {key}: {cell(value)}" for key, value in about.items()),
        "",
        UNITS_ARE_PATIENTS,
        "",
        "## Stages",
        "",
        "Each row decodes another mixture of the model's latents and the truth's. Losses do not "
        "add up: two errors that lie in different places cost less together than the sum of both.",
        "",
        *table(
            ["stage", *(title for title, *_ in _METRICS), "what it is"],
            [
                [
                    stage,
                    *(with_interval(found.mean(m, stage, r), style) for _, m, r, style in _METRICS),
                    what,
                ]
                for stage, what in STAGES.items()
            ],
        ),
        "",
        "## What is lost",
        "",
        *table(
            ["by", "from", "to", "PSNR lost [dB]", "SSIM lost", "body PSNR lost [dB]"],
            [
                [
                    what,
                    before,
                    after,
                    with_interval(found.difference("psnr_db", after, ours=before), "+.3f"),
                    with_interval(found.difference("ssim", after, ours=before), "+.4f"),
                    with_interval(found.difference("psnr_db", after, BODY, ours=before), "+.3f"),
                ]
                for what, before, after in LOSSES
            ],
        ),
        "",
        *_draws(found),
        "## Seams",
        "",
        "Mean step across borders over that an input pixel beside them, over the truth's own at "
        "the same places; 1: no seam. Tile borders are those of the row in tiles; in the other "
        "rows nothing is cut there.",
        "",
        *_seams(found),
        "",
        "## Patient by patient, PSNR [dB]",
        "",
        *_by_patient(found),
    ]
    return "\n".join(lines) + "\n"


def _draws(found: Evaluation) -> list[str]:
    """The section on draws; nothing if there are none."""
    names = [name for name in found.methods if name not in STAGES]
    if not names:
        return []
    shown = [(title, m, r) for title, m, r in RATIOS if "seam" not in m]
    return [
        "## Draws",
        "",
        f"Sharpness and texture as multiples of the truth's own; {found.settings['draws']}, all "
        "refined regions at each step. Down to a step z_t is the truth's, noise and all, then it "
        "is sampled: what that step and those after it lose.",
        "",
        *table(
            ["stage", "PSNR [dB]", *(title for title, _, _ in shown)],
            [
                [
                    name,
                    with_interval(found.mean("psnr_db", name), ".2f"),
                    *(with_interval(found.ratio(m, name, r), ".3f") for _, m, r in shown),
                ]
                for name in (TRUE_EVERYWHERE, *names, MODEL)
            ],
        ),
        "",
    ]


def _seams(found: Evaluation) -> list[str]:
    def shown(stage: str, place: str) -> str:
        if stage == IN_TILES and place != "tile":  # the tiles' own cells and windows lie elsewhere
            return "-"
        return with_interval(found.ratio(f"seam_{place}", stage), ".3f")

    places = ("pixel", "cell", "window", "tile")
    return table(
        ["", *(f"{place}s" for place in places)],
        [
            [stage, *(shown(stage, place) for place in places)]
            for stage in (MODEL, IN_TILES, TRUE_EVERYWHERE, BICUBIC)
        ],
    )


def _by_patient(found: Evaluation) -> list[str]:
    means = {stage: found.patient_means("psnr_db", stage) for stage in STAGES}
    return table(
        ["patient", "slices", *STAGES],
        [
            [patient, str(count), *(number(means[stage].get(patient), ".2f") for stage in STAGES)]
            for patient, count in found.slices.items()
        ],
    )
