"""The whole evaluation in one call, as ``medqdm evaluate`` runs it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from medqdm.data import Pair
from medqdm.enhance import load_enhancer
from medqdm.evaluate.regions import RoiFolder
from medqdm.evaluate.report import write_report
from medqdm.evaluate.run import Evaluation, evaluate, open_pairs
from medqdm.io.whole import check_folder
from medqdm.models.perceptual import load_perceptual

Track = Callable[[Iterable[Pair], int], Iterable[Pair]]


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
    settings: Sequence[str] = (),
    overwrite: bool = False,
    track: Track = lambda pairs, _total: pairs,
) -> Evaluation:
    """Measure a model beside bicubic and Lanczos, and write the report.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``results.md``, ``results.json`` and ``pictures.png``.
        task: whose bundled weights to take; sr4 if neither task nor weights are given.
        weights: a weights file instead; with a task, it must be of the task's factor.
        device: see ``choose_device``.
        seed: of the noise and of the degradations.
        limit: slices at the most, spread over the patients.
        roi: folder of masks, one file per patient.
        use_lpips: LPIPS too; needs its weights.
        settings: ``key=value`` changes to the task that the weights carry.
        overwrite: replace an output folder that has files in it.
        track: wraps the pairs as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker="results.json")
    lpips = load_perceptual() if use_lpips else None
    enhancer = load_enhancer(task, weights, device=device, seed=seed, settings=settings)
    rois = RoiFolder(Path(roi), data, enhancer.task.slice_px) if roi else None
    pairs, total = open_pairs(enhancer.task, data, limit=limit, seed=seed)
    found = evaluate(enhancer, track(pairs, total), rois=rois, lpips=lpips)
    about = {
        "degradation": enhancer.task.test_degradation.model_dump(mode="json"),
        "seed": seed,
        "limit": limit,
    }
    write_report(found, out, about=about, overwrite=overwrite)
    return found
