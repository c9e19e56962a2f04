"""Budget: how many decibels each stage loses, by putting the truth in its place."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medqdm.config import Task
from medqdm.data import Pair
from medqdm.engine import autocast
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate.document import (
    UNITS_ARE_PATIENTS,
    cell,
    heading,
    number,
    table,
    with_interval,
    write_document,
)
from medqdm.evaluate.methods import Model, enhance_one
from medqdm.evaluate.report import results
from medqdm.evaluate.run import REFERENCE, Evaluation, check_pair, describe
from medqdm.evaluate.seams import Borders, borders_of
from medqdm.evaluate.truth import BODY, WHOLE, Truth
from medqdm.jobs import SliceJob, Tile
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume

Image = NDArray[np.float32]
NAME = "budget"

MODEL = "model"
TRUE_EVERYWHERE = "true latent everywhere"
TRUE_REFINED = "true latent where refined"
TRUE_UNREFINED = "true latent where not refined"
NO_TRANSFORMER = "input's latent, no transformer"
DENSE = "model, all refined (s = 0)"
IN_TILES = "model in tiles"
BICUBIC = "bicubic"
STAGES = {
    TRUE_EVERYWHERE: "the decoder alone on the truth's latent: the ceiling of any denoiser",
    TRUE_REFINED: "the model elsewhere: what the unrefined regions cost",
    TRUE_UNREFINED: "the model where refined: what the denoiser costs there",
    MODEL: "as `medqdm enhance` runs it, in one piece",
    DENSE: "nothing is left out, for comparison: not how the model was trained, perhaps",
    NO_TRANSFORMER: "the latent of the upsampled input, decoded",
    IN_TILES: "the slice continued by its mirror image and cut in four tiles, then fused",
    BICUBIC: "no network",
}
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


def measure_budget(enhancer: Enhancer, pairs: Iterable[Pair]) -> Evaluation:
    """Score the model with the truth in the place of one stage after the other.

    Args:
        enhancer: the loaded model.
        pairs: see ``open_pairs``; each must fit into one tile.

    Raises:
        MedQDMError: no pairs, or one that is larger than a tile or of another factor.
    """
    task = enhancer.task
    found = Evaluation(describe(enhancer), task.hu_window)
    tiled = Tiled(enhancer)
    for pair in pairs:
        check_pair(pair, task)
        y, x = pair["lr_hu"].shape
        borders = {**borders_of(task, (y, x)), "tile": tiled.borders((y, x))}
        truth = Truth(pair, task, borders=borders)
        outputs = dict(stages(enhancer, pair))
        outputs[IN_TILES] = enhance_one(tiled, pair["lr_hu"], pair["slice"])[0]
        outputs[BICUBIC] = upsample_bicubic(pair["lr_hu"], task.upscale)
        for stage in STAGES:
            found.add(truth, stage, outputs[stage], {})
        found.add(truth, REFERENCE, pair["hr_hu"], {})
    if not found.scores:
        raise MedQDMError(
            "--budget: must get one pair of slices or more, got none; give volumes with slices"
        )
    return found


@torch.no_grad()
def stages(enhancer: Enhancer, pair: Pair) -> Iterator[tuple[str, Image]]:
    """The model's output with the truth put in at each place, and the model's own.

    Args:
        enhancer: the loaded model.
        pair: a slice of one tile.

    Yields:
        Name of a stage and its ``(y, x)`` output in HU.

    Raises:
        MedQDMError: the slice is larger than one tile.
    """
    task, engine = enhancer.task, enhancer.engine
    job = SliceJob(task, [enhancer.seed], 0, pair["lr_hu"], float(pair["slice"]))
    if len(job.corners) > 1:
        raise MedQDMError(
            f"--budget: slices must be at most {task.slice_px} pixels wide, got "
            f"{' x '.join(map(str, pair['hr_hu'].shape))}; give slices of the task's size"
        )
    lr = job.lr[None, None].to(enhancer.device)
    hr = _padded(pair["hr_hu"], task, lr).to(enhancer.device)

    def noise(k: int) -> Tensor:
        return job.tile_noise(0, 0, k, 0)[None].to(enhancer.device)

    with autocast(enhancer.device, enhancer.precision):
        z_lr, z_hr = engine.encode(engine.upsample(lr)), engine.encode(hr)
        tree, dense = engine.quadtree(lr), engine.quadtree(lr, threshold=0.0)
        index, whole = engine.index(tree, z_lr), engine.index(dense, z_lr)
        z = engine.denoise(lr, z_lr, index, noise, engine.policy(lr, z_lr, index, noise, tree))
        z_dense = engine.denoise(
            lr, z_lr, whole, noise, engine.policy(lr, z_lr, whole, noise, dense)
        )
        latents = {
            TRUE_EVERYWHERE: z_hr,
            TRUE_REFINED: torch.where(index.refined, z_hr, z),
            TRUE_UNREFINED: torch.where(index.refined, z, z_hr),
            MODEL: z,
            DENSE: z_dense,
            NO_TRANSFORMER: z_lr,
        }
        for name, latent in latents.items():
            again = job.afresh()
            sr = engine.decode(latent, lr)[0].cpu()
            again.add(Tile(again, 0, 0), sr, tree.refined[0].cpu(), 0.0)
            yield name, again.finish().hu


def _padded(hr_hu: Image, task: Task, lr: Tensor) -> Tensor:
    """The truth in [-1, 1], (1, 1, h, w), continued as the input is padded."""
    hr = torch.from_numpy(np.asarray(task.hu_window.normalize(hr_hu), dtype=np.float32))[None, None]
    height, width = (side * task.upscale for side in lr.shape[-2:])
    rest = (0, width - hr.shape[-1], 0, height - hr.shape[-2])
    return functional.pad(hr, rest, mode="replicate")


class Tiled(Model):
    """A model that works in four tiles a slice, as it does on slices larger than one.

    The slice is continued by its mirror image on all sides, so that the tiles of the larger slice
    meet near its middle; the middle is cut out of the result.

    Args:
        enhancer: the loaded model.
    """

    def __init__(self, enhancer: Enhancer) -> None:
        super().__init__(enhancer, IN_TILES)
        side = 2 * enhancer.task.tile_lr_px
        job = SliceJob(enhancer.task, [0], 0, np.zeros((side, side), dtype=np.float32), 0.0)
        stride = sorted({x for _, x in job.corners})[1]
        self.margin_lr_px = stride // 2

    def enhance(self, volume: Volume) -> Iterator[Image]:
        """The slices, enhanced one at a time."""
        margin = self.margin_lr_px
        hu = np.pad(np.asarray(volume.hu), ((0, 0), (margin,) * 2, (margin,) * 2), mode="symmetric")
        _, height, width = volume.shape
        factor = self.enhancer.task.upscale
        rows, columns = (
            slice(margin * factor, (margin + side) * factor) for side in (height, width)
        )
        larger = Volume(hu, volume.origins_mm, volume.x_step_mm, volume.y_step_mm)
        for out in super().enhance(larger):
            yield out[rows, columns]

    def borders(self, lr_shape: tuple[int, int]) -> Borders:
        """Rows and columns of the output in which a tile begins or has ended.

        Args:
            lr_shape: ``(y, x)`` of the input.
        """
        factor = self.enhancer.task.upscale
        margin = self.margin_lr_px * factor
        height, width = (side + 2 * self.margin_lr_px for side in lr_shape)
        tiles = borders_of(self.enhancer.task, (height, width))["tile"]
        rows, columns = (
            [k - margin for k in lines if margin < k < margin + side * factor]
            for lines, side in zip((tiles.rows, tiles.columns), lr_shape, strict=True)
        )
        return Borders(rows, columns, tiles.beside_px)


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
    """Stages, what is lost between them, and seams."""
    task = found.settings["task"]
    lines = [
        f"# Error budget of {task['name']}, x{task['upscale']} in plane",
        "",
        heading(found.settings, sum(found.slices.values()), len(found.slices)),
        "",
        *(f"- {key}: {cell(value)}" for key, value in about.items()),
        "",
        "Each row decodes another mixture of the model's latents and the truth's. Losses do not "
        "add up: two errors that lie in different places cost less together than the sum of both.",
        "",
        UNITS_ARE_PATIENTS,
        "",
        "## Stages",
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
