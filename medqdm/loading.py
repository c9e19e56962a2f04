"""Loading: the model that a user means by a task, a weights file and a few options."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from medqdm.checkpoint import WEIGHTS_FOLDER
from medqdm.config import Precision, load_task
from medqdm.enhancer import MOST_DRAWS, Enhancer
from medqdm.errors import MedQDMError
from medqdm.sampling import settings_of


def bundled_weights(name: str) -> Path:
    """Weights that come with medqdm, for a task by name.

    Raises:
        MedQDMError: none are bundled for it.
    """
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors")))
        raise MedQDMError(
            f"no weights for task '{name}': bundled are {known or 'none'}; give --weights FILE"
        )
    return path


class ModelOptions(TypedDict, total=False):
    """What ``load_enhancer`` takes.

    Args:
        task: name of a task; None: sr4, or whatever the weights are for.
        weights: a weights file; None: the task's bundled one. With a task, of the same factor.
        device: see ``choose_device``.
        seed: of the noise.
        settings: ``key=value`` changes to the task that the weights carry.
        precision: ``auto``, ``fp32`` or ``bf16``; see ``Enhancer``.
        batch_size: tiles that the network gets at once; None: found, see ``Enhancer``.
        sampler: which regions run at which steps, see ``SamplerSection``.
        steps: sampling steps; None: the task's, or all with a sampler.
        consistency: draw the output, reduced, nearer to the input.
        uncertainty: draws of each slice, two or more, whose deviation is written beside it.
        mean: draws of each slice, two or more, whose mean is written instead of the first draw.
    """

    task: str | None
    weights: str | Path | None
    device: str
    seed: int
    settings: Sequence[str]
    precision: Precision
    batch_size: int | None
    sampler: str | None
    steps: int | None
    consistency: bool
    uncertainty: int | None
    mean: int | None


def load_enhancer(**options: Unpack[ModelOptions]) -> Enhancer:
    """The model that a user means by ``--task`` and ``--weights``.

    Args:
        **options: see ``ModelOptions``.

    Raises:
        MedQDMError: no such weights, weights of another factor than the task's, or a bad setting.
    """
    task, weights = options.get("task"), options.get("weights")
    path = Path(weights) if weights else bundled_weights(task or "sr4")
    sampling = settings_of(
        options.get("sampler"),
        steps=options.get("steps"),
        consistency=options.get("consistency", False),
    )
    mean = options.get("mean")
    enhancer = Enhancer(
        path,
        device=options.get("device", "auto"),
        precision=options.get("precision", "auto"),
        seed=options.get("seed", 0),
        overrides=[*sampling, *options.get("settings", ())],
        batch_size=options.get("batch_size"),
        draws=_checked_draws(options.get("uncertainty"), mean),
        mean=mean is not None,
    )
    if weights and task and load_task(task).upscale != enhancer.task.upscale:
        raise MedQDMError(
            f"{path}: must be weights for task {task} (x{load_task(task).upscale}), got weights "
            f"of {enhancer.task.name} (x{enhancer.task.upscale}); leave --task out or give others"
        )
    return enhancer


def _checked_draws(uncertainty: int | None, mean: int | None) -> int:
    for name, draws in (("uncertainty", uncertainty), ("mean", mean)):
        if draws is not None and not 2 <= draws <= MOST_DRAWS:
            raise MedQDMError(f"--{name}: must be 2 to {MOST_DRAWS} draws, got {draws}; ask for 8")
    if uncertainty is not None and mean is not None and uncertainty != mean:
        raise MedQDMError(
            f"--mean: must be as many draws as --uncertainty, {uncertainty}, got {mean}; "
            "leave one of them out"
        )
    return uncertainty or mean or 1
