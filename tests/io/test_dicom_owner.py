"""One patient and one study: what is refused, what is told, and what is nobody's business."""

import random

import numpy as np
import pytest

from medqdm.errors import MedQDMError
from medqdm.io import read

PIXELS = np.zeros((6, 8, 8))


def differing(keyword: str, values: list[str | None], seed: int):
    """An edit that spreads values over the slices, each of them to one slice at least."""
    draw = random.Random(seed)
    spread = [*values, *draw.choices(values, k=len(PIXELS) - len(values))]
    draw.shuffle(spread)

    def edit(dataset, k):
        if spread[k] is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, spread[k])

    return edit


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "values",
    [["One^A", "Two^B"], ["One^A", ""], ["One^A", None], ["One^A", "One^B", "One"]],
    ids=str,
)
@pytest.mark.parametrize("patient_id", ["", " ", None])
def test_other_names_without_an_id_are_other_patients(ct_series, values, patient_id, seed) -> None:
    name = differing("PatientName", values, seed)

    def edit(dataset, k):
        name(dataset, k)
        if patient_id is None:
            del dataset.PatientID
        else:
            dataset.PatientID = patient_id

    with pytest.raises(MedQDMError, match=f"one patient, got {len(values)}") as error:
        read(ct_series(PIXELS, edit=edit))
    assert "One" not in str(error.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("values", [["1", "2"], ["1", ""], ["1", None], ["1", "2", "3"]], ids=str)
def test_other_ids_are_other_patients(ct_series, values, seed) -> None:
    edit = differing("PatientID", values, seed)
    with pytest.raises(MedQDMError, match=f"one patient, got {len(values)}"):
        read(ct_series(PIXELS, edit=edit))


@pytest.mark.parametrize(
    ("patient_id", "keyword", "values"),
    [("17", "PatientName", ["One^A", "Two^B"]), ("17", "PatientName", ["One^A", ""]),
     ("17", "PatientBirthDate", ["19110711", "19110712", ""]),
     ("", "PatientBirthDate", ["19110711", ""]), ("17", "IssuerOfPatientID", ["Here", ""])],
)  # fmt: skip
def test_what_differs_beside_the_same_id_is_told_without_the_values(
    ct_series, patient_id, keyword, values
) -> None:
    edit = differing(keyword, values, len(values))
    folder = ct_series(PIXELS, PatientID=patient_id, edit=edit)
    (told,) = [w for w in read(folder).source.warnings if "patient" in w]
    assert "make sure that all are of one person" in told
    assert not any(value in told for value in values if value)


@pytest.mark.parametrize("names", [["One^A", "ONE^A^^", " one^a "], ["", "^^", None]], ids=str)
@pytest.mark.parametrize("patient_id", ["", "17"])
def test_spelling_makes_no_other_patient(ct_series, names, patient_id) -> None:
    edit = differing("PatientName", names, 0)
    volume = read(ct_series(PIXELS, PatientID=patient_id, edit=edit))
    assert not [w for w in volume.source.warnings if "patient" in w]


def test_names_stay_undecoded(ct_series) -> None:
    """The output gets the very bytes of the source, whatever character set they are in."""
    volume = read(ct_series(PIXELS, PatientID=""))
    header = volume.source.headers[0]
    assert header.get_item("PatientName").is_raw


@pytest.mark.parametrize("seed", range(3))
def test_birth_dates_tell_patients_apart_where_nothing_else_does(ct_series, seed) -> None:
    born = differing("PatientBirthDate", ["19500101", "19700101"], seed)

    def edit(dataset, k):
        born(dataset, k)
        dataset.PatientID = dataset.PatientName = ""

    with pytest.raises(MedQDMError, match="one patient, got 2"):
        read(ct_series(PIXELS, edit=edit))
