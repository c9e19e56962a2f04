"""Against: other weights that stand beside the model in one evaluation, rivals among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medqdm.config import Task
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate.methods import Model
from studies.baselines import open_any

_WEIGHTS = "weights="


@dataclass(frozen=True)
class Other:
    """Other weights.

    Args:
        name: their row in the tables.
        weights: their file.
        settings: ``key=value`` changes to the task that they carry.
    """

    name: str
    weights: Path
    settings: tuple[str, ...] = ()


def parse_against(text: str) -> Other:
    """What stands behind one ``--against``.

    Args:
        text: a weights file, which takes the name of its run folder; or
            ``NAME: weights=FILE KEY=VALUE ...`` with settings of the task that it carries.

    Raises:
        MedQDMError: of another form.

    >>> parse_against("runs/edsr/weights.safetensors").name
    'edsr'
    >>> parse_against("dense: weights=a.safetensors quadtree.threshold=0").settings
    ('quadtree.threshold=0',)
    """
    name, colon, rest = text.partition(": ")
    if not colon:
        path = Path(text)
        run = path.resolve().parent.name
        name = run if path.name == "weights.safetensors" and run else path.stem
        return Other(name, path)
    words = rest.split()
    files = [Path(w.removeprefix(_WEIGHTS)) for w in words if w.startswith(_WEIGHTS)]
    if not name.strip() or len(files) != 1 or not all("=" in word for word in words):
        raise MedQDMError(
            f"--against: must be FILE or 'NAME: weights=FILE KEY=VALUE ...', got {text!r}; "
            "for example 'dense: weights=runs/dense/weights.safetensors quadtree.threshold=0'"
        )
    settings = tuple(word for word in words if not word.startswith(_WEIGHTS))
    return Other(name.strip(), files[0], settings)


def open_against(texts: Sequence[str], task: Task, *, device: str, seed: int) -> list[Model]:
    """The methods that a model is compared with.

    Args:
        texts: see ``parse_against``.
        task: of the model; the others must be of its factor and window.
        device: see ``choose_device``.
        seed: of the noise.

    Raises:
        MedQDMError: a file or setting that does not fit, or weights for another kind of task.
    """
    found = []
    for other in map(parse_against, texts):
        opened = open_any(other.weights, other.settings)
        theirs = opened.engine.task
        if (theirs.upscale, theirs.hu_window) != (task.upscale, task.hu_window):
            raise MedQDMError(
                f"--against {other.name}: must be for x{task.upscale} and {task.hu_window}, got "
                f"x{theirs.upscale} and {theirs.hu_window}; compare models of one task"
            )
        found.append(Model(Enhancer(opened, device=device, seed=seed), other.name))
    return found


def describe_against(methods: Sequence[Model]) -> dict[str, str]:
    """What the report says of them: one line each, no paths."""
    lines = {}
    for method in methods:
        enhancer = method.enhancer
        rival = enhancer.task.rival
        trained = [
            f"{stage} {record['steps']} steps in {record['seconds']:g} s"
            + (", begun from other weights" if "start_sha256" in record else "")
            for stage, record in enhancer.record.items()
            if isinstance(record, dict) and {"steps", "seconds"} <= record.keys()
        ]
        lines[f"against {method.name}"] = ", ".join(
            [rival.network if rival else "qdm", f"weights sha256 {enhancer.sha256}", *trained]
        )
    return lines
