"""Settings of training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medqdm.config.fields import (
    Batch,
    NonNegative,
    Often,
    Pixels,
    Positive,
    Precision,
    Probability,
    Section,
    Text,
    Updates,
)

MOST_PATIENTS = 100_000


class AutoencoderTraining(Section):
    """Stage one."""

    steps: Updates = 100_000
    batch_size: Batch = 8
    crop_px: Pixels = 256
    """Side of the random HR crops."""
    learning_rate: Positive = 1e-4
    kl_weight: NonNegative = 1e-6
    perceptual_weight: NonNegative = 0.0
    """Weight of LPIPS; needs the extra ``perceptual``."""
    adversarial_weight: NonNegative = 0.0
    """Weight of the PatchGAN term (hinge)."""
    adversarial_start: Updates = 20_000
    """Step at which the adversarial term begins."""
    lr_share: Probability = 0.25
    """Share of a batch that is bicubic-upsampled LR, which the encoder meets in stage two. The
    KL-VAE gives it back; the light decoder, which sees the LR image anyway, aims at HR."""


class DiffusionTraining(Section):
    """Stage two."""

    steps: Updates = 50_000
    batch_size: Batch = 64
    crop_px: Pixels | None = None
    """Side of the random HR crops; None: whole slices."""
    learning_rate: Positive = 5e-5
    upstream_weight: NonNegative = 1.0
    """lambda_2 of Eq. 6."""
    downstream_weight: NonNegative = 1.0
    """lambda_1 of Eq. 6."""
    perceptual_weight: NonNegative = 0.0
    """lambda_3 of Eq. 7; needs the extra ``perceptual``."""
    image_weight: NonNegative = 0.0
    """Weight of the decoded prediction's error in [-1, 1]; above 0 the decoder is trained too,
    so that it meets predicted latents, while the encoder and thus the latents stay."""
    image_loss: Literal["l1", "l2", "log"] = "l1"
    """Error of the decoded prediction: absolute, whose best guess is a median and therefore too low
    for thin bone, or squared, whose best guess is the mean. Squared errors are small numbers:
    about 15 times the weight pulls as much. log: ``log(1 + m / 0.001)`` of each sample's squared
    error m, so that noisy samples do not outweigh the others; up to some 33 dB it counts decibels,
    above it levels off. A weight of 1 pulls about as much as 200 (30 dB) to 330 (33 dB) of l2."""
    gradient_weight: NonNegative = 0.0
    """Weight of the absolute error of differences between neighbouring pixels along x and y; times
    ``image_weight``."""
    ssim_weight: NonNegative = 0.0
    """Weight of 1 - SSIM (Wang et al. 2004: Gaussian weights, sigma 1.5); times ``image_weight``.
    What 5 is beside log, 0.3 is about beside l1 and 0.02 beside l2, whose errors are smaller."""
    first_step_share: Probability = 0.0
    """Share of the samples at the first step, T - 1, all by itself what one-step sampling takes;
    the others draw their step evenly."""
    mean_share: Probability = 0.0
    """Share of the samples that are put at the first step and start from the prior's mean, as
    one-step sampling with ``diffusion.one_step: mean`` does, in batches without a step for each
    region."""
    region_steps_share: Probability = 0.0
    """Share of the batches in which each window stands at a step of its own, as under ``tss``."""
    corrector_alone: bool = False
    """Train the corrector (``transformer.corrector``) and, with an image loss, the decoder, while
    the streams stay as they are: for a model that was trained without one (``--start``)."""
    corrector_weight: NonNegative = 1.0
    """Weight of the corrector's squared error beside those of Eq. 6."""
    mask_training: Literal["mixed", "none"] = "mixed"
    """mixed: mostly the task's s, some s = 0, some random s. none: s = 0 always, as published."""

    @model_validator(mode="after")
    def _terms_have_a_weight(self) -> "DiffusionTraining":
        for name in ("gradient_weight", "ssim_weight"):
            if (weight := getattr(self, name)) > 0 and self.image_weight == 0:
                raise ValueError(
                    f"{name} must be 0 without image_weight, got {weight:g}; set it to 0, or "
                    "image_weight above 0"
                )
        return self


class RegionTraining(Section):
    """``medqdm train-gain``: the networks that tell what running a region would bring."""

    steps: Updates = 300
    batch_size: Batch = 1
    crop_px: Pixels | None = None
    """Side of the random HR crops; None: whole slices."""
    learning_rate: Positive = 1e-3


class SpreadTraining(Section):
    """``medqdm train-spread``: the networks that tell how far the model's estimates are off."""

    steps: Updates = 400
    batch_size: Batch = 2
    crop_px: Pixels | None = None
    """Side of the random HR crops; None: whole slices."""
    learning_rate: Positive = 3e-3


class RegressionTraining(Section):
    """``studies.baselines train edsr``: a network from LR to HR images, by its L1 error."""

    steps: Updates = 20_000
    batch_size: Batch = 8
    crop_px: Pixels | None = 192
    """Side of the random HR crops; None: whole slices."""
    learning_rate: Positive = 8e-4


class TrainingSection(Section):
    """How a task is trained: its two stages, what may follow them, and what it is compared with."""

    autoencoder: AutoencoderTraining = AutoencoderTraining()
    diffusion: DiffusionTraining = DiffusionTraining()
    regions: RegionTraining = RegionTraining()
    spread: SpreadTraining = SpreadTraining()
    regression: RegressionTraining = RegressionTraining()
    minutes: Positive | None = None
    """Minutes that each stage trains, validation apart, instead of its steps; the cosine then
    follows the clock."""
    flips: Literal["x", "all"] = "x"
    """Training slices are mirrored left to right by chance; all: also top to bottom, and turned by
    a quarter, to eight views of each."""
    reduce_probability: Probability = 0.0
    """Share of training slices that are reduced by area, by a factor of chance, before they are
    cropped, or continued by air to a whole slice: HR at further pixel spacings."""
    largest_reduction: Annotated[float, Field(ge=1.25, le=4)] = 1.5
    """Largest of these factors; the smallest is 1.25, as nearly 1 blurs. Their logarithms are
    even."""
    shift_probability: Probability = 0.0
    """Share of training slices that are moved by up to half their side, continued by their mirror
    image: what tiles of a larger slice look like, which have no air around them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    ema_decay: Probability = 0.999
    """Share that the moving average of the weights keeps of itself at each step; less in the first
    steps (``training.fit.Average``)."""
    weight_decay: NonNegative = 0.0
    warmup_steps: Updates = 0
    """Steps over which the learning rate rises from 0."""
    cosine: bool = False
    """Let the learning rate fall to 1 % along a cosine after the warm-up."""
    gradient_clip: NonNegative = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    accumulate: Batch = 1
    """Batches per optimiser step."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it fast, else fp32."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Annotated[int, Field(ge=1, le=256)] = 1
    strategy: Literal["auto", "ddp"] = "auto"
    num_workers: Annotated[int, Field(ge=0, le=256)] = 2
    validation_patients: Annotated[tuple[Text, ...], Field(max_length=MOST_PATIENTS)] = ()
    """Patient folders held out; empty: validation_share of the patients, drawn by the seed."""
    validation_share: Probability = 0.15
    patient_weights: Annotated[dict[Text, Positive], Field(max_length=MOST_PATIENTS)] = Field(
        default_factory=dict
    )
    """How often slices of a patient folder are drawn, 1 where it is not named: to balance parts of
    the body, or to let a resampled scan count less."""
    validation_slices: Annotated[int, Field(ge=1, le=100_000)] = 16
    """Slices of the held-out patients that each validation looks at."""
    validate_every: Often = 1000
    """Optimiser steps between validations."""
    checkpoint_every: Often = 500
    """Optimiser steps between checkpoints to resume from."""
