"""Build: a study folder from enhanced series, their sources and any references."""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.whole import check_folder, check_room, whole_folder
from medqdm.picture import orientation_letters, upsample_bicubic
from medqdm.review.series import Review
from medqdm.version import __version__
from studies.reader_study.files import (
    IMAGES,
    KEY_FILE,
    STUDY_FILE,
    Case,
    Key,
    KeyCase,
    KeyImage,
    Reader,
    Study,
    Trial,
    write_image,
    write_record,
)
from studies.reader_study.match import Material, find_outputs, match
from studies.reader_study.plan import ARMS, Pick, name_images, order_showings, pick_cases

_RANGE_HU = (-1024, 3071)  # of all arms, so that none is told by what another cannot hold
_MOST_READERS = 1000


def make_study(  # noqa: PLR0913  (all by keyword but two)
    outputs: Sequence[str | Path],
    out: str | Path,
    *,
    sources: Sequence[str | Path],
    references: Sequence[str | Path] = (),
    readers: int = 2,
    cases: int = 24,
    stack: int = 5,
    repeat: float = 0.2,
    seed: int = 0,
    slice_axis: int | None = None,
) -> Study:
    """Draw the cases of a blinded study, and write its folder.

    The same arguments give the same cases, orders and sides; links are new each time.

    Args:
        outputs: folders that ``medqdm enhance`` wrote, or folders that hold some.
        out: the folder to appear; it holds pixels of the patients, but no header and no name.
        sources: the series they were made from, in any order, or folders that hold them.
        references: the truth on the output's grid, where there is one; in any order.
        readers: how many.
        cases: stacks that are drawn, of all outputs together; with a reference a case gives three
            pairs to compare, else one.
        stack: neighbouring slices of a case.
        repeat: share of pairs that each reader sees twice, 0 to 0.5.
        seed: of everything that is drawn.
        slice_axis: array axis of the slices of NIfTI, NRRD and MetaImage files.

    Raises:
        MedQDMError: series do not belong together, a number is out of its range, or the folder
            is in use.
    """
    _check_numbers(readers=readers, stack=stack, repeat=repeat, seed=seed)
    if not sources:
        raise MedQDMError(
            "--source: must hold the series that the outputs were made from, got none; "
            "give their folder"
        )
    folder = Path(out)
    check_folder(folder, overwrite=False)
    materials = match(find_outputs(outputs), sources, references, slice_axis=slice_axis)
    lengths = [material.review.num_slices for material in materials]
    picks = pick_cases(lengths, cases, stack, seed=seed)
    check_room(folder, sum(_num_bytes(materials[pick.output], pick) for pick in picks))
    arms = {name: _arms(materials[pick.output]) for name, pick in _named(picks)}
    images = iter(name_images(sum(map(len, arms.values())), seed=seed))
    names = {case: {arm: next(images) for arm in has} for case, has in arms.items()}
    study = Study(
        study=_identity(materials, picks, seed),
        medqdm=__version__,
        seed=seed,
        cases={case: _case(materials[pick.output], pick) for case, pick in _named(picks)},
        readers=tuple(
            Reader(
                name=f"r{k + 1}",
                token=secrets.token_urlsafe(24),
                trials=tuple(
                    Trial(case=s.case, a=names[s.case][s.a], b=names[s.case][s.b])
                    for s in order_showings(arms, reader=k, repeat=repeat, seed=seed)
                ),
            )
            for k in range(readers)
        ),
    )
    patients = _patients(materials)
    key = Key(
        study=study.study,
        seed=seed,
        images={
            image: KeyImage(case=case, arm=arm)
            for case, has in names.items()
            for arm, image in has.items()
        },
        cases={
            case: KeyCase(
                output=pick.output + 1,
                series=materials[pick.output].review.label,
                patient=patients[pick.output],
                slices=tuple(z + 1 for z in pick.slices),
            )
            for case, pick in _named(picks)
        },
    )
    with whole_folder(folder) as new:
        (new / IMAGES).mkdir()
        for case, pick in _named(picks):
            for arm, image in sorted(names[case].items(), key=lambda item: item[1]):
                write_image(new, image, _stack(materials[pick.output], pick, arm))
        write_record(new / STUDY_FILE, study)
        write_record(new / KEY_FILE, key)
    return study


def _check_numbers(*, readers: int, stack: int, repeat: float, seed: int) -> None:
    for option, value, low, high in (
        ("--readers", readers, 1, _MOST_READERS),
        ("--stack", stack, 1, 1000),
        ("--repeat", repeat, 0, 0.5),
        ("--seed", seed, 0, 2**63 - 1),
    ):
        if not low <= value <= high:
            raise MedQDMError(f"{option}: must be {low} to {high}, got {value}; change it")


def _named(picks: Sequence[Pick]) -> Iterator[tuple[str, Pick]]:
    digits = len(str(len(picks)))
    return ((f"c{k:0{digits}d}", pick) for k, pick in enumerate(picks, 1))


def _arms(material: Material) -> tuple[str, ...]:
    return ARMS if material.reference is not None else ARMS[:2]


def _num_bytes(material: Material, pick: Pick) -> int:
    _, rows, columns = material.review.enhanced.shape
    return len(_arms(material)) * len(pick.slices) * rows * columns * np.dtype(np.int16).itemsize


def _case(material: Material, pick: Pick) -> Case:
    enhanced, window = material.review.enhanced, material.review.model_window
    left, right = orientation_letters(enhanced.x_step_mm)
    top, bottom = orientation_letters(enhanced.y_step_mm)
    return Case(
        num_slices=len(pick.slices),
        size_px=enhanced.shape[1:],
        pixel_mm=enhanced.spacing_mm,
        letters=(left, right, top, bottom),
        window_hu=(window.center_hu, window.width_hu),
    )


def _stack(material: Material, pick: Pick, arm: str) -> NDArray[np.int16]:
    """An arm's slices: of one type and range, black where nothing was measured."""
    review = material.review
    slices = []
    for z in pick.slices:
        hu = _slice(material, arm, z).clip(*_RANGE_HU)
        if review.before.padding is not None:
            cell = np.ones((review.upscale, review.upscale), dtype=bool)
            hu = np.where(np.kron(review.before.padding[z], cell), _RANGE_HU[0], hu)
        slices.append(np.rint(hu).astype(np.int16))
    return np.stack(slices)


def _slice(material: Material, arm: str, z: int) -> NDArray[np.float32]:
    review = material.review
    if arm == "bicubic":
        return upsample_bicubic(review.before.hu[z], review.upscale)
    volume = review.enhanced if arm == "enhanced" else material.reference
    assert volume is not None  # there is no such arm then
    return volume.hu[z]


def _patients(materials: Sequence[Material]) -> list[int]:
    """A number for the patient of each output: outputs of one patient share it."""
    numbers: dict[tuple[str, ...], int] = {}
    return [
        numbers.setdefault(_patient(material.review, k), len(numbers) + 1)
        for k, material in enumerate(materials)
    ]


def _patient(review: Review, index: int) -> tuple[str, ...]:
    source = review.before.source
    if source.kind != "dicom":
        return ("file", str(index))
    header = source.headers[0]
    names = ("PatientID", "PatientName", "PatientBirthDate")
    known = tuple(str(header.get(name) or "") for name in names)
    return known if any(known) else ("study", str(header.get("StudyInstanceUID", index)))


def _identity(materials: Sequence[Material], picks: Sequence[Pick], seed: int) -> str:
    """A name of the study that says nothing of its patients."""
    text = repr((seed, [m.review.label for m in materials], picks))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
