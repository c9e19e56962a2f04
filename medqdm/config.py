"""What a task is: frozen sections with units and ranges, read from YAML, carried by the weights."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from medqdm.errors import MedQDMError
from medqdm.window import Window

_PACKAGED = Path(__file__).parent / "configs"  # in a wheel; a checkout has configs/ beside medqdm/
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "configs"


def _require_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


def _require_rising(value: tuple[Any, Any]) -> tuple[Any, Any]:
    if value[0] > value[1]:
        raise ValueError("the first number must not be above the second")
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[int, Field(ge=0, le=100)]
Odd = Annotated[int, Field(gt=0), AfterValidator(_require_odd)]
Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_require_rising)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WindowSection(Section):
    """The HU range the networks see."""

    center_hu: float = 0.0
    """Middle of the window in HU."""
    width_hu: PositiveFloat = 2000.0
    """Whole width of the window in HU."""


class DegradationSection(Section):
    """Real-ESRGAN's first degradation stage for one channel; the defaults are ``paper-train``.

    Noise is on the scale of [0, 1] = the whole window.
    """

    true_kernel_sizes: tuple[Odd, ...] = (3, 5, 7, 9, 11)
    """Sides of the drawn blur kernels in HR pixels; empty means no blur. (The reference stores
    them in 13 x 13 zeros, which changes nothing.)"""
    sinc_probability: Probability = 0.1
    """Share of circular low-pass kernels, cut-off in [pi/3, pi]."""
    isotropic_probability: Probability = 0.6
    """Share of isotropic ones among the Gaussian kernels; the rest is anisotropic."""
    blur_sigma_px: Range = (0.2, 3.0)
    """Standard deviation of the Gaussian kernels in HR pixels."""
    resize_probabilities: tuple[Probability, Probability, Probability] = (0.2, 0.7, 0.1)
    """Up, down, keep."""
    resize_range: Range = (0.5, 1.5)
    """Smallest and largest scale of the random resize."""
    resize_modes: tuple[Literal["area", "bilinear", "bicubic"], ...] = (
        "area",
        "bilinear",
        "bicubic",
    )
    """Modes of both resizes, drawn per sample."""
    gaussian_probability: Probability = 0.4
    """Share of Gaussian noise; the rest gets Poisson noise."""
    gaussian_sigma: Range = (1 / 255, 15 / 255)
    """Standard deviation of the Gaussian noise."""
    poisson_scale: Range = (0.05, 3.0)
    """Strength of the Poisson noise; (0, 0) turns it off."""
    jpeg_quality: Annotated[tuple[Percent, Percent], AfterValidator(_require_rising)] = (70, 95)
    """Range of the JPEG quality; (0, 0) turns JPEG off."""
    round_to_8_bit: bool = True
    """Clamp to [0, 1] and round to 1/255 at the end, as the paper's data set does."""


_PAPER_TEST = {
    "blur_sigma_px": (0.2, 0.8),
    "poisson_scale": (0.05, 0.3),
    "gaussian_probability": 0.5,
}
_CLEAN = {
    "true_kernel_sizes": (),
    "resize_probabilities": (0.0, 0.0, 1.0),
    "resize_modes": ("area",),
    "gaussian_probability": 1.0,
    "gaussian_sigma": (0.0, 0.0),
    "poisson_scale": (0.0, 0.0),
    "jpeg_quality": (0, 0),
    "round_to_8_bit": False,
}
DEGRADATIONS: dict[str, DegradationSection] = {
    "paper-train": DegradationSection(),
    "paper-test": DegradationSection.model_validate(_PAPER_TEST),
    "clean": DegradationSection.model_validate(_CLEAN),
}


def _expand_preset(value: Any) -> Any:
    """A preset's name, or a mapping with the key ``preset`` and what differs, to a section."""
    changes = dict(value) if isinstance(value, Mapping) else {}
    name = changes.pop("preset", None) if changes else value
    if not isinstance(name, str):
        return value
    if name not in DEGRADATIONS:
        raise ValueError(f"must be one of {', '.join(DEGRADATIONS)}")
    return {**DEGRADATIONS[name].model_dump(), **changes}


class LightSection(Section):
    """The light autoencoder: all width at latent resolution, a decoder that sees the LR image."""

    compression: Literal[2, 4, 8] = 4
    """Pixels per latent along an axis."""
    channels: PositiveInt = 64
    """Width of encoder and decoder."""
    encoder_blocks: PositiveInt = 4
    """Residual blocks of the encoder."""
    decoder_blocks: PositiveInt = 16
    """Residual blocks of the decoder."""


class AutoencoderSection(Section):
    """The autoencoder between pixels and latents."""

    light: LightSection | None = None
    """The light autoencoder instead of the KL-VAE that the next five settings describe."""

    channels: tuple[PositiveInt, ...] = (128, 256, 512)
    """Channels per resolution; the compression is 2 to the power of (their number - 1)."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    latent_channels: PositiveInt = 3
    """Channels of a latent."""
    norm_groups: PositiveInt = 32
    """Groups of each GroupNorm."""
    mid_attention: bool = True
    """Self-attention in the middle of encoder and decoder."""
    image_channels: PositiveInt = 1
    """Channels of an image: 1 for CT; published weights have 3."""
    latent_scale: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    """Multiplier that gives latents unit variance, one or one per latent channel; None: measured
    per channel after stage one."""

    @property
    def compression(self) -> int:
        """Pixels per latent along an axis."""
        return self.light.compression if self.light else int(2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _scale_fits(self) -> "AutoencoderSection":
        if isinstance(self.latent_scale, tuple) and len(self.latent_scale) != self.latent_channels:
            raise ValueError(
                f"latent_scale must be one number or {self.latent_channels}, one per latent "
                f"channel, got {len(self.latent_scale)}"
            )
        return self


class TransformerSection(Section):
    """The two-stream transformer."""

    size: Literal["T", "S", "B", "L", "custom"] = "B"
    """A row of ``models.transformer.SIZES``, or custom with the three numbers below."""
    depth: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    prediction: Literal["z_0", "residual", "preconditioned"] = "z_0"
    """What the network's output means: the clean latent (paper), its difference from z_lr, or what
    remains of that beside the best guess from z_t alone (``Process.guess``; EDM,
    arXiv:2206.00364), as a multiple of the guess's error: then the network need not copy z_t, and
    its target has about unit variance at every step."""
    mask_input: bool = False
    """Show the network the refined regions as one more channel."""
    packing: Literal["windows", "tokens"] = "windows"
    """What exists downstream: all tokens of windows that hold a refined one (published weights), or
    refined tokens alone, for which a network must have been trained."""

    @model_validator(mode="after")
    def _custom_is_whole(self) -> "TransformerSection":
        given = [self.depth, self.hidden_size, self.num_heads]
        if (self.size == "custom") != all(v is not None for v in given) or (
            self.size != "custom" and any(v is not None for v in given)
        ):
            raise ValueError(
                "depth, hidden_size and num_heads go with size custom, all three together"
            )
        return self


class QuadtreeSection(Section):
    """Which regions are refined."""

    threshold: NonNegativeFloat = 0.15
    """The paper's s: refine where max - min of the LR image in [-1, 1] exceeds it."""
    num_levels: PositiveInt = 4
    """Levels of the tree, from cells of 2 LR pixels upward."""
    inclusive: bool = False
    """Compare with >= (published code) instead of >, so that s = 0 refines constant air too."""
    noise_factor: NonNegativeFloat = 0.0
    """c of the noise-aware threshold max(s, c * noise sd of the slice); 0 turns it off."""


class TSSSection(Section):
    """``tss``: ``sampling_steps`` steps, dense at both ends, more so where the LR image varies.

    Where both ranges are points, all regions take the same steps.
    """

    exponent: Annotated[
        tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]],
        AfterValidator(_require_rising),
    ] = (1.0, 2.0)
    """n of the flattest and of the most detailed regions; 1: even steps, more: denser ends."""
    transition: Annotated[
        tuple[
            Annotated[float, Field(gt=0, lt=1)],
            Annotated[float, Field(gt=0, lt=1)],
        ],
        AfterValidator(_require_rising),
    ] = (0.4, 0.6)
    """a of the same: the share of the way at which early steps pass into late ones."""


class GainSection(Section):
    """``gain``: regions whose estimate changes little skip steps and freeze."""

    threshold: NonNegativeFloat = 0.05
    """Change of a region's estimate in a step, as a share of its difference from z_lr, below which
    it runs at every fourth step only, and freezes the second time; 0: all run at all steps."""
    source: Literal["change", "regressor"] = "change"
    """change: as above. regressor: the gain that a trained network expects (``medqdm train-gain``),
    measured with ``expected``."""
    expected: NonNegativeFloat = 0.02
    """The threshold of ``regressor``: tenths of a decibel of a region's error, or of its edges'
    similarity, through tanh."""
    skips: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 2, 3, 4)
    """Steps until a region runs again: from 4 thresholds of gain on, from 2, from 1, below."""


class GroupsSection(Section):
    """``groups``: regions start late where a coarse estimate is good; has steps of its own."""

    steps: tuple[tuple[NonNegativeInt, ...], ...] = ((14, 11, 8, 5, 2, 0), (9, 5, 2, 0), (3, 0))
    """Schedule indices of the groups, hardest first: each falls to 0, each starts later."""
    rho: PositiveFloat = 0.25
    """Largest admissible bias of a start, as a share of the noise there."""
    confidence: Literal["upstream", "level", "head"] = "upstream"
    """What a region's error is told from: how far the upstream's first estimate lies from z_lr, the
    mean share of quadtree levels on which its cells are split, or a network that was trained to
    tell (``medqdm train-gain``)."""
    error: PositiveFloat = 1.0
    """Root mean square latent error of the coarse estimate per unit of that; of what ``head``
    tells, 1 is true."""

    @model_validator(mode="after")
    def _steps_fall(self) -> "GroupsSection":
        for steps in self.steps:
            if not steps or steps[-1] != 0 or list(steps) != sorted(set(steps), reverse=True):
                raise ValueError(f"steps must fall to 0 in each group, got {list(steps)}")
        starts = [steps[0] for steps in self.steps]
        if not starts or starts != sorted(starts, reverse=True):
            raise ValueError(f"steps must start later from group to group, got starts {starts}")
        return self


class SamplerSection(Section):
    """In which regions the downstream runs at which steps. A region is a window of 8 x 8 tokens."""

    name: Literal["uniform", "tss", "gain", "groups", "random", "upstream"] = "uniform"
    """uniform: all regions at all of the steps. random and upstream (no region ever) are the
    controls that the others must beat."""
    tss: TSSSection = TSSSection()
    gain: GainSection = GainSection()
    groups: GroupsSection = GroupsSection()
    random_share: Probability = 0.25
    """``random``: share of the regions that run at each step."""
    correlation_mm: NonNegativeFloat = 20.0
    """Distance of slices, along their normal, at which their noise is independent; nearer ones
    share some of it (``diffusion.noise``). 0: each slice has noise of its own."""
    steady: Literal["none", "max", "median"] = "none"
    """What a cell takes of its own slice's quadtree and the two beside it, so that refined regions
    do not flicker (``diffusion.quadtree.steady``)."""


class DiffusionSection(Section):
    """The residual-shift process and how it is sampled."""

    num_steps: Annotated[int, Field(ge=2)] = 15
    """T, the steps of the training schedule."""
    kappa: PositiveFloat = 2.0
    """Noise strength."""
    min_noise_level: PositiveFloat = 0.04
    """m: the first sqrt(eta) is min(m / kappa, m)."""
    max_sqrt_eta: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """The last sqrt(eta)."""
    power: PositiveFloat = 0.3
    """p of the schedule's spacing."""
    sampling_steps: PositiveInt | None = None
    """Steps taken by the sampler, spread evenly and always with the first and last; None: all."""
    residual_deviation: PositiveFloat | None = None
    """Root mean square of z_0 - z_lr where refined, which ``preconditioned`` networks start from;
    None: measured before stage two."""
    gamma: Probability = 1.0
    """1: ancestral sampling; 0: deterministic after the first noise."""
    sampler: SamplerSection = SamplerSection()
    consistency: NonNegativeInt = 0
    """Iterations of back-projection that draw the output, reduced, nearer to the input
    (``diffusion.consistency``); 0: none."""
    published_masking: bool = False
    """True: one input scale for all pixels and the ancestral mean outside the refined regions, as
    published weights expect; False: both follow the mask."""

    @model_validator(mode="after")
    def _groups_fit(self) -> "DiffusionSection":
        highest = max(steps[0] for steps in self.sampler.groups.steps)
        if self.sampler.name == "groups" and highest >= self.num_steps:
            raise ValueError(
                f"sampler.groups.steps must be below num_steps = {self.num_steps}, got {highest}"
            )
        return self


class AutoencoderTraining(Section):
    """Stage one."""

    steps: NonNegativeInt = 100_000
    batch_size: PositiveInt = 8
    crop_px: PositiveInt = 256
    """Side of the random HR crops."""
    learning_rate: PositiveFloat = 1e-4
    kl_weight: NonNegativeFloat = 1e-6
    perceptual_weight: NonNegativeFloat = 0.0
    """Weight of LPIPS; needs the extra ``perceptual``."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of the PatchGAN term (hinge)."""
    adversarial_start: NonNegativeInt = 20_000
    """Step at which the adversarial term begins."""
    lr_share: Probability = 0.25
    """Share of a batch that is bicubic-upsampled LR, which the encoder meets in stage two. The
    KL-VAE gives it back; the light decoder, which sees the LR image anyway, aims at HR."""


class DiffusionTraining(Section):
    """Stage two."""

    steps: NonNegativeInt = 50_000
    batch_size: PositiveInt = 64
    crop_px: PositiveInt | None = None
    """Side of the random HR crops; None: whole slices."""
    learning_rate: PositiveFloat = 5e-5
    upstream_weight: NonNegativeFloat = 1.0
    """lambda_2 of Eq. 6."""
    downstream_weight: NonNegativeFloat = 1.0
    """lambda_1 of Eq. 6."""
    perceptual_weight: NonNegativeFloat = 0.0
    """lambda_3 of Eq. 7; needs the extra ``perceptual``."""
    image_weight: NonNegativeFloat = 0.0
    """Weight of the decoded prediction's L1 error in [-1, 1]; above 0 the decoder is trained too,
    so that it meets predicted latents, while the encoder and thus the latents stay."""
    first_step_share: Probability = 0.0
    """Share of the samples at the first step, T - 1, all by itself what one-step sampling takes;
    the others draw their step evenly."""
    region_steps_share: Probability = 0.0
    """Share of the batches in which each window stands at a step of its own, as under ``tss``."""
    mask_training: Literal["mixed", "none"] = "mixed"
    """mixed: mostly the task's s, some s = 0, some random s. none: s = 0 always, as published."""


class DistillationTraining(Section):
    """``medqdm distill``: a student of the sampler, for few steps."""

    steps: NonNegativeInt = 3000
    batch_size: PositiveInt = 8
    crop_px: PositiveInt | None = None
    """Side of the random HR crops; None: whole slices."""
    learning_rate: PositiveFloat = 5e-5
    student_steps: PositiveInt = 4
    """Most steps the student is made for; fewer work as well if their indices are among its."""
    teacher_weight: NonNegativeFloat = 1.0
    """Weight of the distance to what the teacher's deterministic sampler ends at."""
    truth_weight: NonNegativeFloat = 1.0
    """Weight of the distance to the true latent."""
    image_weight: NonNegativeFloat = 0.0
    """Weight of the decoded prediction's L1 error in [-1, 1]; above 0 trains the decoder too."""


class RegionTraining(Section):
    """``medqdm train-gain``: the networks that tell what running a region would bring."""

    steps: NonNegativeInt = 300
    batch_size: PositiveInt = 1
    crop_px: PositiveInt | None = None
    """Side of the random HR crops; None: whole slices."""
    learning_rate: PositiveFloat = 1e-3


class TrainingSection(Section):
    """How a task is trained: its two stages, and what may follow them."""

    autoencoder: AutoencoderTraining = AutoencoderTraining()
    diffusion: DiffusionTraining = DiffusionTraining()
    distillation: DistillationTraining = DistillationTraining()
    regions: RegionTraining = RegionTraining()
    seed: NonNegativeInt = 0
    ema_decay: Probability = 0.999
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0."""
    cosine: bool = False
    """Let the learning rate fall to 1 % along a cosine after the warm-up."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    accumulate: PositiveInt = 1
    """Batches per optimiser step."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it fast, else fp32."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt = 1
    strategy: Literal["auto", "ddp"] = "auto"
    num_workers: NonNegativeInt = 2
    validation_patients: tuple[str, ...] = ()
    """Patient folders held out; empty: validation_share of the patients, drawn by the seed."""
    validation_share: Probability = 0.15
    validation_slices: PositiveInt = 16
    """Slices of the held-out patients that each validation looks at."""
    validate_every: PositiveInt = 1000
    """Optimiser steps between validations."""
    checkpoint_every: PositiveInt = 500
    """Optimiser steps between checkpoints to resume from."""


class Task(Section):
    """A whole task: what a weights file carries and what ``configs/NAME.yaml`` overrides."""

    name: str
    """The YAML file's name without its ending."""
    description: str = ""
    """One line for ``medqdm tasks``."""
    upscale: Literal[2, 4, 8] = 4
    """In-plane factor."""
    slice_px: PositiveInt = 512
    """Side of an HR slice in training; larger volumes are reduced to it."""
    window: WindowSection = WindowSection()
    degradation: DegradationSection = DEGRADATIONS["paper-train"]
    """Degradation of the training data: a preset's name, or ``preset:`` and what differs."""
    test_degradation: DegradationSection = DEGRADATIONS["paper-test"]
    """Degradation of validation, ``prepare`` and ``evaluate``."""
    autoencoder: AutoencoderSection = AutoencoderSection()
    transformer: TransformerSection = TransformerSection()
    quadtree: QuadtreeSection = QuadtreeSection()
    diffusion: DiffusionSection = DiffusionSection()
    training: TrainingSection = TrainingSection()

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, data: Any) -> Any:
        data = dict(data)
        for key in ("degradation", "test_degradation"):
            if key in data:
                data[key] = _expand_preset(data[key])
        return data

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Task":
        unit = self.upscale * self.lr_multiple
        for key, size in (
            ("slice_px", self.slice_px),
            *(
                (
                    f"training.{stage}.crop_px",
                    getattr(self.training, stage).crop_px or self.slice_px,
                )
                for stage in ("diffusion", "distillation", "regions")
            ),
        ):
            if size % unit:
                raise ValueError(f"{key} must be a multiple of {unit}, got {size}")
        for channels in () if self.autoencoder.light else self.autoencoder.channels:
            if channels % self.autoencoder.norm_groups:
                raise ValueError(
                    f"autoencoder.channels must be multiples of norm_groups = "
                    f"{self.autoencoder.norm_groups}, got {channels}"
                )
        return self

    @property
    def hu_window(self) -> Window:
        """The window as an object."""
        return Window(self.window.center_hu, self.window.width_hu)

    @property
    def threshold_hu(self) -> float:
        """The quadtree threshold in HU: a range of [-1, 1] data is two units wide."""
        return self.quadtree.threshold * self.hu_window.hu_per_unit

    @property
    def latent_size(self) -> int:
        """Side of the latent of an HR training slice: the grid that positions are trained on."""
        return self.slice_px // self.autoencoder.compression

    @property
    def tile_lr_px(self) -> int:
        """Side of an LR tile: the one whose latent is the trained grid."""
        return self.slice_px // self.upscale

    @property
    def lr_multiple(self) -> int:
        """LR sizes are padded to multiples of this: whole windows, whole patches, whole cells."""
        window_px = 16 * self.autoencoder.compression  # 8 x 8 tokens of 2 x 2 latents
        return max(2, window_px // self.upscale)


def task_names() -> list[str]:
    """Names of the tasks that come with medqdm, in alphabetical order."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_task(name: str | Path, overrides: Sequence[str] = ()) -> Task:
    """Read a task.

    Args:
        name: one of ``task_names()``, or the path of a YAML file.
        overrides: ``key=value`` with dotted keys, as ``--set`` takes them.

    Raises:
        MedQDMError: no such task, or a key or value that does not fit.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise MedQDMError(f"{path}: a task file must exist, got none; check the path")
    elif str(name) in task_names():
        path = CONFIGS / f"{name}.yaml"
    else:
        raise MedQDMError(
            f"no task '{name}': expected one of {', '.join(task_names())}, or the path of a YAML "
            f"file{_did_you_mean(str(name), task_names())}"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise MedQDMError(f"{path}: must be YAML, got an error: {reason}") from None
    if not isinstance(data, dict):
        raise MedQDMError(f"{path}: must be a mapping of keys, got {type(data).__name__}")
    task = _validate({"name": path.stem, **data}, where=path.name)
    return override(task, overrides)


def parse_task(data: Mapping[str, Any], *, where: str) -> Task:
    """A task from plain data, as a weights file carries it; ``where`` names it in messages."""
    return _validate(dict(data), where=where)


def override(task: Task, overrides: Sequence[str]) -> Task:
    """The task with ``key=value`` settings changed; the same validation as a file.

    Raises:
        MedQDMError: not of the form key=value, or a key or value that does not fit.
    """
    if not overrides:
        return task
    data = task.model_dump()
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise MedQDMError(
                f"--set {item}: must be key=value, got {item!r}; "
                "for example --set quadtree.threshold=0.1"
            )
        *parents, leaf = key.strip().split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {}) if isinstance(section, dict) else {}
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(section, dict):
            section[leaf] = value
        if not isinstance(section, dict) or section is not _walk(data, parents):
            raise MedQDMError(f"--set {key}: must name a setting, got no section for it")
    return _validate(data, where="--set")


def _walk(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _validate(data: dict[str, Any], *, where: str) -> Task:
    try:
        return Task.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = _did_you_mean(key, _all_keys(Task))
            message = f"{where}: {key} must be a known setting, got an unknown one{near}"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            message = f"{where}: {key or 'task'}: {reason}"
            if not isinstance(first["input"], Mapping | BaseModel):
                message += f", got {first['input']!r}"
        raise MedQDMError(message) from None


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _did_you_mean(text: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
