"""Budget: how many decibels each stage loses, by putting the truth in its place."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medqdm.config import Task
from medqdm.data import Pair
from medqdm.device import autocast
from medqdm.diffusion.policies import Policy
from medqdm.diffusion.quadtree import Quadtree
from medqdm.diffusion.sampler import step_index
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate.evaluation import REFERENCE, Evaluation
from medqdm.evaluate.methods import Model, enhance_one
from medqdm.evaluate.run import check_pair, describe
from medqdm.evaluate.seams import Borders, borders_of
from medqdm.evaluate.truth import Truth
from medqdm.jobs import SliceJob, Tile
from medqdm.picture import upsample_bicubic
from medqdm.sampling import tokens_of_regions
from medqdm.volume import Volume

Image = NDArray[np.float32]
MODEL = "model"
TRUE_EVERYWHERE = "true latent everywhere"
TRUE_REFINED = "true latent where refined"
TRUE_UNREFINED = "true latent where not refined"
NO_TRANSFORMER = "input's latent, no transformer"
DENSE = "model, all refined (s = 0)"
IN_TILES = "model in tiles"
BICUBIC = "bicubic"
TRUE_WITH_TEXTURE = "true latent, texture of a draw"
DRAW = "draw"
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


def measure_budget(
    enhancer: Enhancer, pairs: Iterable[Pair], drawing: Enhancer | None = None
) -> Evaluation:
    """Score the model with the truth in the place of one stage after the other.

    Args:
        enhancer: the loaded model.
        pairs: see ``open_pairs``; each must fit into one tile.
        drawing: the same with settings that draw, for the stages of ``draws``; None: without them.

    Raises:
        MedQDMError: no pairs, or one that is larger than a tile or of another factor; or
            ``drawing`` does not draw.
    """
    task = enhancer.task
    settings = describe(enhancer)
    if drawing is not None:
        settings["draws"] = drawing.task.diffusion.told(mean=False, has_noise=True)
    found = Evaluation(settings, task.hu_window)
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
        for stage, hu in draws(drawing, pair) if drawing is not None else ():
            found.add(truth, stage, hu, {})
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
    engine = enhancer.engine
    job, lr, hr, noise = _opened(enhancer, pair)
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
            yield name, _finished(job, engine.decode(latent, lr), tree)


@torch.no_grad()
def draws(enhancer: Enhancer, pair: Pair) -> Iterator[tuple[str, Image]]:
    """Draws of which chance decides more and more.

    First the truth's latent with the texture of a draw; then z_t is the truth's, diffused, down to
    the last step, to the last but one, and so on, and sampled from there; the last is a draw. All
    refined regions run at all steps, whatever ``diffusion.sampler`` says.

    Args:
        enhancer: the loaded model; ``diffusion.one_step`` must be draw, as the last step alone
            would otherwise start from the prior's mean.
        pair: a slice of one tile.

    Yields:
        Name of a stage and its ``(y, x)`` output in HU, from the truth to the draw.

    Raises:
        MedQDMError: the slice is larger than one tile, or the settings do not draw.
    """
    engine, process, section = enhancer.engine, enhancer.engine.process, enhancer.task.diffusion
    if section.one_step != "draw":
        raise MedQDMError(
            f"budget of draws: diffusion.one_step must be draw, got {section.one_step}; set it"
        )
    job, lr, hr, noise = _opened(enhancer, pair)
    with autocast(enhancer.device, enhancer.precision):
        z_lr, z_hr = engine.encode(engine.upsample(lr)), engine.encode(hr)
        tree = engine.quadtree(lr)
        index = engine.index(tree, z_lr)

        def shown(z: Tensor) -> Image:
            white = job.white[None].to(enhancer.device)
            maps, _ = engine.show([z], lr, z_lr=z_lr, refined=tree.refined, white=lambda: white)
            return _finished(job, maps, tree)

        yield TRUE_WITH_TEXTURE, shown(z_hr)
        deviation = process.prior(torch.zeros_like(z_lr), torch.ones_like(z_lr))
        steps = process.schedule.subset(section.sampling_steps)
        for k in range(len(steps) - 1, -1, -1):
            t = step_index(steps[k], z_lr)
            z_t = process.diffuse(z_hr, z_lr, t, noise(0), index.refined)
            # the prior is z_lr + deviation * noise: this noise makes it z_t
            first = (z_t - z_lr) / deviation if k else noise(0)

            def onwards(draw: int, first: Tensor = first) -> Tensor:
                return noise(draw) if draw else first

            policy = Policy(steps[k:], tokens_of_regions(index))
            z = engine.denoise(lr, z_lr, index, onwards, policy)
            yield (true_until(steps[k]) if k else DRAW), shown(z)


def true_until(t: int) -> str:
    """The stage in which z_t is the truth's down to an index."""
    return f"draw, true until step {t}"


def _opened(
    enhancer: Enhancer, pair: Pair
) -> tuple[SliceJob, Tensor, Tensor, Callable[[int], Tensor]]:
    """A slice of one tile, its input and truth in [-1, 1], (1, 1, h, w) each, and its noise."""
    task = enhancer.task
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

    return job, lr, hr, noise


def _finished(job: SliceJob, sr: Tensor, tree: Quadtree) -> Image:
    """What a slice becomes whose one tile came back as (1, 1, h, w) in [-1, 1]."""
    again = job.afresh()
    again.add(Tile(again, 0, 0), sr[0].cpu(), tree.refined[0].cpu(), 0.0)
    return again.finish().hu


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
