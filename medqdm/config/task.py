"""A task: all sections, read from YAML, carried by the weights."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from medqdm.config.degradation import DEGRADATIONS, DegradationSection, expand_preset
from medqdm.config.diffusion import DiffusionSection
from medqdm.config.fields import Pixels, Positive, Probability, Section, Text
from medqdm.config.networks import (
    RIVALS,
    AutoencoderSection,
    EDSRSection,
    QuadtreeSection,
    RivalSection,
    TransformerSection,
)
from medqdm.config.size import count_weights
from medqdm.config.training import TrainingSection
from medqdm.errors import MedQDMError
from medqdm.window import Window

_PACKAGED = (
    Path(__file__).parent.parent / "configs"
)  # in a wheel; a checkout has configs/ beside medqdm/
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"

MOST_WEIGHTS = 3_000_000_000  # of a task's networks; L with the paper's KL-VAE has 0.74 billion
SSIM_SIDE_PX = 11  # of the Gaussian that training's ssim_weight looks through
# Settings of earlier versions, which weights and task files may still carry.
RETIRED = ("training.distillation",)


class WindowSection(Section):
    """The HU range the networks see."""

    center_hu: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    """Middle of the window in HU."""
    width_hu: Positive = 2000.0
    """Whole width of the window in HU."""


class Task(Section):
    """A whole task: what a weights file carries and what ``configs/NAME.yaml`` overrides."""

    name: Text
    """The YAML file's name without its ending."""
    description: Text = ""
    """One line for ``medqdm tasks``."""
    upscale: Literal[2, 4, 8] = 4
    """In-plane factor."""
    slice_px: Pixels = 512
    """Side of an HR slice in training; larger volumes are reduced to it."""
    window: WindowSection = WindowSection()
    degradation: DegradationSection = DEGRADATIONS["paper-train"]
    """Degradation of the training data: a preset's name, or ``preset:`` and what differs."""
    degradation_mix: Annotated[dict[Text, Probability], Field(max_length=100)] = Field(
        default_factory=dict
    )
    """Presets that some training samples get instead of ``degradation``, each with its share."""
    test_degradation: DegradationSection = DEGRADATIONS["paper-test"]
    """Degradation of validation, ``prepare`` and ``evaluate``."""
    autoencoder: AutoencoderSection = AutoencoderSection()
    transformer: TransformerSection = TransformerSection()
    quadtree: QuadtreeSection = QuadtreeSection()
    diffusion: DiffusionSection = DiffusionSection()
    training: TrainingSection = TrainingSection()
    rival: RivalSection | None = None
    """Another network that takes the model's place, to compare with (``studies.baselines``)."""

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, data: Any) -> Any:
        data = dict(data)
        for key in ("degradation", "test_degradation"):
            if key in data:
                data[key] = expand_preset(data[key])
        return data

    @model_validator(mode="after")
    def _corrector_exists(self) -> "Task":
        if self.training.diffusion.corrector_alone and self.transformer.corrector is None:
            raise ValueError(
                "training.diffusion.corrector_alone must go with transformer.corrector, got none; "
                "set transformer.corrector, or train all"
            )
        return self

    @model_validator(mode="after")
    def _mix_fits(self) -> "Task":
        for name in self.degradation_mix:
            if name not in DEGRADATIONS:
                raise ValueError(
                    f"degradation_mix: must name presets ({', '.join(DEGRADATIONS)}), got {name!r}"
                )
        total = sum(self.degradation_mix.values())
        if total > 1 + 1e-9:
            raise ValueError(f"degradation_mix: shares must add up to at most 1, got {total:g}")
        return self

    @property
    def training_degradations(self) -> list[tuple[DegradationSection, float]]:
        """Degradations of the training samples, each with its share; the task's own is first."""
        mixed = [(DEGRADATIONS[name], share) for name, share in self.degradation_mix.items()]
        found = [(self.degradation, max(0.0, 1 - sum(share for _, share in mixed))), *mixed]
        total = sum(share for _, share in found)  # 1 but for rounding
        return [(section, share / total) for section, share in found]

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
                for stage in ("diffusion", "regions", "spread")
            ),
        ):
            if size % unit:
                raise ValueError(f"{key} must be a multiple of {unit}, got {size}")
        unit = math.lcm(self.autoencoder.compression, self.upscale)
        least = unit * math.ceil(SSIM_SIDE_PX / unit)
        if self.training.diffusion.ssim_weight and self.training.autoencoder.crop_px < least:
            raise ValueError(
                f"training.autoencoder.crop_px must be at least {least} for ssim_weight, got "
                f"{self.training.autoencoder.crop_px}"
            )
        for channels in () if self.autoencoder.light else self.autoencoder.channels:
            if channels % self.autoencoder.norm_groups:
                raise ValueError(
                    f"autoencoder.channels must be multiples of norm_groups = "
                    f"{self.autoencoder.norm_groups}, got {channels}"
                )
        return self

    @model_validator(mode="after")
    def _networks_fit(self) -> "Task":
        count = count_weights(self.autoencoder, self.transformer, self.rival)
        if count > MOST_WEIGHTS:
            raise ValueError(
                f"the networks must have {MOST_WEIGHTS / 1e9:g} billion weights at the most, got "
                f"about {count / 1e9:.1f} billion; lower their channels, depth or blocks"
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

    def with_diffusion(self, **changes: Any) -> "Task":
        """The task with other settings of its process or sampler, which must be valid."""
        return self.model_copy(update={"diffusion": self.diffusion.model_copy(update=changes)})

    @property
    def fuses_latents(self) -> bool:
        """Whether tiles are fused as latents, for a decoder that looks at neighbourhoods alone."""
        return self.autoencoder.light is not None and not isinstance(self.rival, EDSRSection)

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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise MedQDMError(f"{path}: must be YAML, got an error: {reason}") from None
    if not isinstance(data, dict):
        raise MedQDMError(f"{path}: must be a mapping of keys, got {type(data).__name__}")
    task = parse_task({"name": path.stem, **data}, where=path.name)
    return override(task, overrides)


def parse_task(data: Mapping[str, Any], *, where: str) -> Task:
    """A task from plain data, as weights carry it, without retired settings.

    Args:
        data: of a weights file or a task file.
        where: names it in messages.

    Raises:
        MedQDMError: a key or value that does not fit.
    """
    for key in RETIRED:
        data = _without(data, key.split("."))
    return _validate(dict(data), where=where)


def _without(data: Any, keys: Sequence[str]) -> Any:
    """The data without one key, given with those of the sections around it; a copy."""
    first, *rest = keys
    if not isinstance(data, Mapping) or first not in data:
        return data
    if rest:
        return {**data, first: _without(data[first], rest)}
    return {key: value for key, value in data.items() if key != first}


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
        except (yaml.YAMLError, ValueError, RecursionError):
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
        # a rival's kind is in the place of the error, but no part of a setting's name
        key = ".".join(str(part) for part in first["loc"] if part not in RIVALS)
        if first["type"] == "extra_forbidden":
            near = _did_you_mean(key, _all_keys(Task))
            message = f"{where}: {key} must be a known setting, got an unknown one{near}"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            message = f"{where}: {key or 'task'}: {reason}"
            if not isinstance(first["input"], Mapping | BaseModel):
                message += f", got {_shown(first['input'])}"
        raise MedQDMError(message) from None


def _shown(value: Any) -> str:
    """A value as a line that is not too long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for part in _sections(field.annotation):
            keys += _all_keys(part, f"{prefix}{name}.")
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold, those of a union too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _did_you_mean(text: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
