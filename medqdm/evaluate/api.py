"""Whole evaluations in one call each, as ``medqdm evaluate`` runs them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medqdm.config import DEGRADATIONS, Task
from medqdm.data import Pair, is_prepared
from medqdm.errors import MedQDMError
from medqdm.evaluate import report
from medqdm.evaluate.document import marker, write_texts
from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.methods import Method, Model
from medqdm.evaluate.regions import RoiFolder
from medqdm.evaluate.report import write_report
from medqdm.evaluate.run import describe_data, evaluate, open_pairs
from medqdm.io.whole import check_folder, whole_folder
from medqdm.loading import ModelOptions, load_enhancer
from medqdm.models.perceptual import load_perceptual

Track = Callable[[Iterable[Pair], int], Iterable[Pair]]
Others = Callable[[Task], tuple[Sequence[Method], dict[str, str]]]


def evaluate_weights(  # noqa: PLR0913  (all by keyword but two)
    data: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    limit: int | None = None,
    roi: str | Path | None = None,
    use_lpips: bool = False,
    others: Others = lambda _task: ((), {}),
    mean: int | None = None,
    degradation: str | None = None,
    settings: Sequence[str] = (),
    overwrite: bool = False,
    track: Track = lambda pairs, _total: pairs,
) -> Evaluation:
    """Measure a model beside bicubic and Lanczos, and write the report.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``results.md``, ``results.json`` and pictures.
        task: whose bundled weights to take; sr4 if neither task nor weights are given.
        weights: a weights file instead; with a task, it must be of the task's factor.
        device: see ``choose_device``.
        seed: of the noise and of the degradations.
        limit: slices at the most, spread over the patients.
        roi: folder of masks, one file per patient.
        use_lpips: LPIPS too; needs its weights.
        others: from the model's task, further methods for the tables, and lines on them for the
            report.
        mean: draws of each slice, whose mean is one more row.
        degradation: name of a preset instead of the task's ``test_degradation``.
        settings: ``key=value`` changes to the task that the weights carry.
        overwrite: replace an output folder that has files in it.
        track: wraps the pairs as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker="results.json")
    lpips = load_perceptual() if use_lpips else None
    model = ModelOptions(
        task=task,
        weights=weights,
        device=device,
        seed=seed,
        settings=[*settings, *degraded_by(degradation, data)],
    )
    enhancer = load_enhancer(**model)
    rois = RoiFolder(Path(roi), data, enhancer.task.slice_px) if roi else None
    methods, lines = others(enhancer.task)
    means = []
    if mean is not None:
        model["mean"] = mean
        means.append(Model(load_enhancer(**model), f"mean of {mean}"))
    pairs, total = open_pairs(enhancer.task, data, limit=limit, seed=seed)
    found = evaluate(
        enhancer, track(pairs, total), others=[*means, *methods], rois=rois, lpips=lpips
    )
    about = {
        **describe_data(enhancer.task, data, limit=limit, seed=seed),
        **lines,
    }
    write_report(found, out, about=about, overwrite=overwrite)
    return found


def evaluate_degradations(
    data: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda _text: None,
    **options: Any,
) -> dict[str, Evaluation]:
    """``evaluate_weights`` under each preset of the degradation, and a table over all of them.

    Args:
        data: folder of volumes.
        out: folder for ``results.md``, ``results.json`` and a report for each preset.
        overwrite: replace an output folder that has files in it.
        announce: told the name of each preset before it begins.
        **options: all others of ``evaluate_weights`` but ``degradation``.

    Returns:
        Name of a preset to what was measured under it.

    Raises:
        MedQDMError: see ``evaluate_weights``.
    """
    out, found = Path(out), {}
    with whole_folder(out, overwrite=overwrite, marker=marker(report.NAME)) as folder:
        for name in DEGRADATIONS:
            announce(name)
            found[name] = evaluate_weights(data, folder / name, degradation=name, **options)
        parts = {name: report.results(one, {}) for name, one in found.items()}
        shown = {k: {"regions": v["regions"]} for k, v in parts.items()}
        text = "\n".join(report.summary_lines(found))
        write_texts(folder, report.NAME, data={"degradations": shown}, text=text)
    return found


def degraded_by(name: str | None, data: Path) -> list[str]:
    """The settings that put a preset in the place of the task's ``test_degradation``.

    Args:
        name: of the preset; None: the task's own.
        data: folder of volumes.

    Raises:
        MedQDMError: a prepared set, whose degradation is done.
    """
    if name is None:
        return []
    if is_prepared(data):
        raise MedQDMError(
            f"{data}: must be a folder of volumes for --degradation {name}, got a prepared set, "
            "which is degraded already; give the volumes that it was made from"
        )
    return [f"test_degradation={name}"]
