"""Training of rivals: the same data, degradation, optimiser and budget as the models they face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.nn import functional

from medqdm.config import EDSRSection, ResShiftSection, Task, load_task, override
from medqdm.data import SliceDataModule
from medqdm.errors import MedQDMError
from medqdm.models.perceptual import load_perceptual
from medqdm.training.diffusion import DiffusionModule, log_scores
from medqdm.training.fit import fit
from medqdm.training.lightning import without_harmless_messages
from medqdm.training.optimizer import check_finite, make_optimizer
from medqdm.training.run import (
    AUTOENCODER_WEIGHTS,
    WEIGHTS,
    adopt_autoencoder,
    begin_diffusion,
    ended,
    on_first_process,
    open_run,
)
from studies.baselines.networks import EDSR
from studies.baselines.weights import build_edsr, build_unet, resshift_engine, save

SECTIONS = {"edsr": EDSRSection(), "resshift": ResShiftSection()}
STAGE = "rival"  # sub-folder of the run
_UNET_ALONE = (  # settings of a U-Net that takes the transformer's place
    "quadtree.threshold=0",
    "quadtree.inclusive=true",
    "quadtree.noise_factor=0",
    "training.diffusion.mask_training=none",
    "training.diffusion.region_steps_share=0",
    "transformer.corrector=null",
    "training.diffusion.corrector_alone=false",
)


class RegressionModule(pl.LightningModule):
    """Trains a regression network by its L1 error.

    Args:
        task: its ``training.regression`` section says how.
        network: from LR to HR images.
    """

    def __init__(self, task: Task, network: EDSR) -> None:
        super().__init__()
        self.task = task
        self.settings = task.training.regression
        self.network = network

    def training_step(self, batch: dict[str, Any], _batch_idx: int) -> Tensor:
        """Mean absolute error of a batch, images in [-1, 1]."""
        loss = functional.l1_loss(self.network(batch["lr"]).float(), batch["hr"])
        check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], _batch_idx: int) -> None:
        """PSNR, SSIM and HU error of whole slices, beside bicubic."""
        lr = batch["lr"]
        sr = self.network(lr).float().clamp(-1, 1)
        log_scores(self, self.task, batch["hr"], sr=sr, up=self.network.upsample(lr))

    def configure_optimizers(self) -> Any:
        """AdamW over the network."""
        settings = self.settings
        parameters = list(self.network.parameters())
        return make_optimizer(
            parameters, settings.learning_rate, settings.steps, self.task.training
        )


def rival_task(network: str, task: str | Path, settings: Sequence[str] = ()) -> Task:
    """A task with a rival in the model's place.

    ResShift takes the task's stage two, but without regions: all latents carry noise, and each
    slice of a batch stands at one step.

    Args:
        network: ``edsr`` or ``resshift``.
        task: see ``load_task``; a rival's own, of the same network, keeps its sizes.
        settings: ``key=value`` changes, those of the network under ``rival``.

    Raises:
        MedQDMError: no such network or task, or a setting that does not fit.
    """
    if network not in SECTIONS:
        raise MedQDMError(f"no rival '{network}': expected one of {', '.join(SECTIONS)}")
    rivalled = load_task(task)
    if not isinstance(rivalled.rival, type(SECTIONS[network])):  # a rival's own task keeps it
        rivalled = rivalled.model_copy(update={"rival": SECTIONS[network]})
    fixed = _UNET_ALONE if network == "resshift" else ()  # whatever the settings say
    return override(rivalled, [*settings, *fixed])


def train_rival(task: Task, data: Path, out: Path, *, autoencoder: Path | None = None) -> Path:
    """Train a rival, or go on where an earlier call with the same folder stopped.

    Args:
        task: see ``rival_task``.
        data: as for ``training.run.train``.
        out: run folder; a new one, or that of the same task to resume.
        autoencoder: medqdm weights whose autoencoder a ResShift rival takes; for it alone.

    Returns:
        The rival's weights, ``OUT/weights.safetensors``.

    Raises:
        MedQDMError: the data, the run folder or the autoencoder do not fit.
    """
    is_latent = isinstance(task.rival, ResShiftSection)
    if is_latent != (autoencoder is not None):
        wanted = "weights whose autoencoder the rival takes" if is_latent else "left out for edsr"
        raise MedQDMError(
            f"--autoencoder: must be {wanted}, got {autoencoder.name if autoencoder else 'none'}; "
            "give the file of the model to compare with, to resshift alone"
        )
    open_run(task, out)
    if (out / WEIGHTS).is_file():
        return ended(out)
    with without_harmless_messages():
        if autoencoder is None:
            _train_regression(task, data, out)
        else:
            if not (out / AUTOENCODER_WEIGHTS).is_file():
                adopt_autoencoder(task, autoencoder, out)
            _train_resshift(task, data, out)
    return out / WEIGHTS


def _train_regression(task: Task, data: Path, out: Path) -> None:
    pl.seed_everything(task.training.seed, workers=True, verbose=False)
    network = build_edsr(task)
    source = SliceDataModule(task, data, "regression")
    steps = task.training.regression.steps
    record = fit(task, RegressionModule(task, network), source, out / STAGE, steps)
    on_first_process(lambda: save(out / WEIGHTS, network, task=task, record={STAGE: record}))


def _train_resshift(task: Task, data: Path, out: Path) -> None:
    task, stage_one, source = begin_diffusion(task, data, out)
    engine = resshift_engine(task, stage_one.autoencoder, build_unet(task))
    settings = task.training.diffusion
    perceptual = load_perceptual() if settings.perceptual_weight > 0 else None
    module = DiffusionModule(task, engine, perceptual)
    record = fit(task, module, source, out / STAGE, settings.steps)
    whole = {**stage_one.record, STAGE: record}
    on_first_process(lambda: save(out / WEIGHTS, engine, task=task, record=whole))
