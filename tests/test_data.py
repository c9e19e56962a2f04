"""Patients, HR slices, samples and prepared sets."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medqdm.config import Task, load_task, override
from medqdm.data import (
    Patient,
    SliceDataModule,
    evaluation_transforms,
    find_patients,
    is_prepared,
    iterate_pairs,
    load_prepared,
    load_slices,
    prepare,
    read_manifest,
    split_patients,
    train_transforms,
)
from medqdm.data.module import BatchNumbers
from medqdm.data.samples import RandReduceD, TrainingSlices
from medqdm.data.slices import area_weights, spread, to_hr_slices
from medqdm.degrade import DegradationParams, degrade
from medqdm.errors import MedQDMError
from medqdm.volume import Volume


def write_nifti(
    path: Path, hu: NDArray[Any], spacing_mm: tuple[float, float, float] = (3.0, 0.5, 0.5)
) -> None:
    """A NIfTI file of ``(z, y, x)`` HU; the spacing is ``(z, y, x)`` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing_mm[2], -spacing_mm[1], spacing_mm[0], 1.0])
    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine), path)


def body(num: int, px: int = 128, seed: int = 0) -> NDArray[np.int16]:
    """Noisy discs of about 40 HU in air, one size per slice."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px] - (px - 1) / 2
    radius = px * (0.25 + 0.2 * np.arange(num) / num)
    inside = np.hypot(y, x)[None] < radius[:, None, None]
    hu = np.where(inside, 40 + random.normal(0, 60, (num, px, px)), -1000)
    return hu.astype(np.int16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in a loader's worker; on a busy machine two threads are slower on such small slices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task() -> Task:
    return load_task("tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for k, num in enumerate((3, 6, 4, 12)):
        write_nifti(folder / f"p{k}" / "image.nii.gz", body(num, seed=k))
    return folder


def names(patients: Iterable[Patient]) -> list[str]:
    return [patient.name for patient in patients]


# patients


def test_folders_and_files_are_patients(data: Path) -> None:
    write_nifti(data / "single.nii.gz", body(2))
    (data / "notes.txt").write_text("no volume")
    (data / "empty").mkdir()
    write_nifti(data / ".hidden" / "image.nii.gz", body(2))
    assert names(find_patients(data)) == ["p0", "p1", "p2", "p3", "single"]


@pytest.mark.parametrize(
    "name", ["case_01_OAR_Eye_L.nii.gz", "case_01_IMG_MR_T1.nii.gz", "x_seg.nii.gz"]
)
def test_segmentations_and_mr_are_left_out_aloud(
    data: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_nifti(data / "p0" / name, body(3))
    with caplog.at_level(logging.WARNING):
        patients = find_patients(data)
    assert name in caplog.text
    assert len(patients[0].volumes) == 1


def write_ct(path: Path, hu: NDArray[Any], z_mm: float, series: str = "1.2.3.4") -> None:
    """One CT file of ``(y, x)`` HU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPInstanceUID = f"{series}.{round(z_mm * 10) + 1}"
    dataset.SeriesInstanceUID = series
    dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = "1.2.3"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = [0, 0, z_mm]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.RescaleSlope, dataset.RescaleIntercept = 0, 1, -1024
    dataset.PixelData = (hu + 1024).astype(np.uint16).tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_a_dicom_folder_with_two_series_is_one_patient(tmp_path: Path) -> None:
    hu = body(4, px=64)
    for k in range(3):
        write_ct(tmp_path / "data" / "p0" / f"{k}.dcm", hu[k], 2.0 * k)
    write_ct(tmp_path / "data" / "p0" / "b" / "0.dcm", hu[3], 0, series="1.2.3.5")
    (patient,) = find_patients(tmp_path / "data")
    assert patient.name == "p0"
    assert len(patient.volumes) == 2
    slices = load_slices(patient, 64).hu
    assert sorted(map(bytes, slices)) == sorted(map(bytes, hu))


def test_a_folder_of_one_patient_s_files_and_a_single_file(tmp_path: Path) -> None:
    for k in range(3):
        write_ct(tmp_path / "p7" / f"{k}.dcm", body(3, px=64)[k], 2.0 * k)
    assert names(find_patients(tmp_path / "p7")) == ["p7"]
    write_nifti(tmp_path / "scan.nii.gz", body(2))
    assert names(find_patients(tmp_path / "scan.nii.gz")) == ["scan"]


def test_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedQDMError, match="must be a folder of CT volumes, got nothing"):
        find_patients(tmp_path / "missing")
    with pytest.raises(MedQDMError, match=r"must hold CT volumes.*got none"):
        find_patients(tmp_path)


def test_two_patients_of_one_name_are_refused(data: Path) -> None:
    write_nifti(data / "p0.nii.gz", body(2))
    with pytest.raises(MedQDMError, match="different names, got p0"):
        find_patients(data)


def test_the_split_is_by_patient_and_fixed_by_the_seed(data: Path, task: Task) -> None:
    patients = find_patients(data)
    train, validation = split_patients(patients, task.training)
    assert set(names(train)).isdisjoint(names(validation))
    assert sorted(names(train) + names(validation)) == names(patients)
    assert len(validation) == 1
    assert split_patients(patients[::-1], task.training)[1] == validation
    held_out = set()
    for seed in range(12):
        section = task.training.model_copy(update={"seed": seed})
        held_out |= set(names(split_patients(patients, section)[1]))
    assert len(held_out) > 1


def test_each_side_of_the_split_has_a_patient(data: Path, task: Task) -> None:
    patients = find_patients(data)[:2]
    for share in (0.0, 1.0):
        section = task.training.model_copy(update={"validation_share": share})
        assert [len(side) for side in split_patients(patients, section)] == [1, 1]


def test_named_patients_are_held_out(data: Path, task: Task) -> None:
    section = task.training.model_copy(update={"validation_patients": ("p0", "p2")})
    train, validation = split_patients(find_patients(data), section)
    assert names(train) == ["p1", "p3"]
    assert names(validation) == ["p0", "p2"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "validation_patients=[p9]",
            "validation_patients: must be folders of the data, got p9; there are p0, p1, p2, p3; "
            r"name some of them, or none: --set training.validation_patients=\[\]",
        ),
        (
            "patient_weights={p1: 2, p9: 3}",
            "patient_weights: must be folders of the data, got p9; .* training.patient_weights={}",
        ),
        ("validation_patients=[p0, p1, p2, p3]", "must leave a patient to train on, got all 4"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    data: Path, task: Task, setting: str, message: str
) -> None:
    training = override(task, [f"training.{setting}"]).training
    with pytest.raises(MedQDMError, match=message):
        split_patients(find_patients(data), training)


def test_one_patient_is_refused(data: Path, task: Task) -> None:
    with pytest.raises(MedQDMError, match="two patients or more, got 1"):
        split_patients(find_patients(data)[:1], task.training)


# HR slices


def test_a_larger_matrix_is_reduced_by_areas() -> None:
    hu = body(2, px=128).astype(np.float32)
    hr, spacing = to_hr_slices(Volume.from_spacing(hu, (3.0, 0.4, 0.5)), 64)
    blocks = hu.reshape(2, 64, 2, 64, 2).mean(axis=(2, 4))
    assert hr.dtype == np.int16
    assert np.abs(hr - blocks).max() <= 0.5
    np.testing.assert_allclose(spacing, [0.8, 1.0])


def test_area_weights_keep_a_constant_and_the_sum() -> None:
    weights = area_weights(652, 512)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=0), 512 / 652, rtol=1e-4)
    drift = weights @ (np.arange(652) + 0.5) - (np.arange(512) + 0.5) * 652 / 512
    assert np.abs(drift).max() < 0.15  # centres of mass, in steps of whole input pixels
    assert abs(drift.mean()) < 1e-3


def test_a_long_matrix_keeps_its_field_of_view() -> None:
    hu = np.full((1, 64, 128), 100.0)
    hr, spacing = to_hr_slices(Volume.from_spacing(hu, (3.0, 0.5, 0.5)), 64)
    assert (hr[0, 16:48] == 100).all()
    assert (hr[0, :16] == -1024).all()
    assert (hr[0, 48:] == -1024).all()
    np.testing.assert_allclose(spacing, [1.0, 1.0])


def test_a_smaller_matrix_is_padded_with_air_never_enlarged() -> None:
    hu = np.full((1, 40, 60), 100.0)
    hr, spacing = to_hr_slices(Volume.from_spacing(hu, (3.0, 0.5, 0.5)), 64)
    assert (hr[0, 12:52, 2:62] == 100).all()
    assert np.count_nonzero(hr == 100) == 40 * 60
    assert np.count_nonzero(hr == -1024) == 64 * 64 - 40 * 60
    np.testing.assert_allclose(spacing, [0.5, 0.5])


def test_a_slightly_larger_matrix_is_cropped_around_the_centre() -> None:
    hu = np.zeros((1, 70, 66))
    hu[0, 35, 33] = 700
    hr, spacing = to_hr_slices(Volume.from_spacing(hu, (3.0, 0.5, 0.5)), 64)
    assert hr[0, 32, 32] == 700
    np.testing.assert_allclose(spacing, [0.5, 0.5])


def test_slices_are_read_once_and_in_order(data: Path) -> None:
    patient = find_patients(data)[3]
    slices = load_slices(patient, 128)
    assert load_slices(patient, 128) is slices
    np.testing.assert_array_equal(slices.hu, body(12, seed=3))


def test_equal_spacings_take_the_last_axis(tmp_path: Path) -> None:
    write_nifti(tmp_path / "iso.nii.gz", body(5, px=64), (1.0, 1.0, 1.0))
    slices = load_slices(find_patients(tmp_path)[0], 64)
    np.testing.assert_array_equal(slices.hu, body(5, px=64))


def test_a_bad_volume_beside_a_good_one_is_left_out_aloud(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = data / "p0" / "image.nii.gz"
    bad = data / "p0" / "more.nii.gz"
    bad.write_bytes(good.read_bytes()[:-2000])
    patient = Patient("p0", ((good, None), (bad, None)))
    with caplog.at_level(logging.WARNING):
        assert len(load_slices(patient, 64).hu) == 3
    assert "more.nii.gz" in caplog.text
    with pytest.raises(MedQDMError, match=r"more\.nii\.gz"):
        load_slices(Patient("p0", ((bad, None),)), 64)
    with pytest.raises(MedQDMError, match="must hold a CT volume that can be read, got none"):
        load_slices(Patient("p0", ((bad, None), (bad, None))), 64)


def test_slices_are_spread_evenly(data: Path) -> None:
    patients = find_patients(data)
    chosen = spread(patients, 64, 8)
    assert Counter(patient.name for patient, _ in chosen) == {"p0": 2, "p1": 2, "p2": 2, "p3": 2}
    assert [index for patient, index in chosen if patient.name == "p3"] == [3, 9]
    assert [(p.name, k) for p, k in spread(patients[:1], 64, None)] == [
        ("p0", 0), ("p0", 1), ("p0", 2)]  # fmt: skip
    assert len(spread(patients, 64, 1000)) == 25


# samples


def test_a_training_sample(data: Path, task: Task) -> None:
    patients = find_patients(data)
    sample = TrainingSlices(task, "diffusion", patients)[0]
    assert sample["hr"].shape == (1, 64, 64)
    assert sample["lr"].shape == (1, 16, 16)
    assert type(sample["hr"]) is torch.Tensor
    assert float(sample["hr"].min()) == -1
    assert sample["patient"] in names(patients)
    assert sample["spacing_mm"] == pytest.approx(1.0)


def test_a_crop_is_a_part_of_the_slice(data: Path, task: Task) -> None:
    task = override(task, ["training.autoencoder.crop_px=16", "degradation=clean"])
    patients = find_patients(data)[1:2]
    samples = TrainingSlices(task, "autoencoder", patients)
    whole = task.hu_window.normalize(
        torch.from_numpy(load_slices(patients[0], 64).hu.astype(np.float32))
    )
    places = set()
    for index in range(6):
        sample = samples[index]
        assert sample["lr"].shape == (1, 4, 4)
        image = whole[sample["slice"]]
        both = torch.stack([image, image.flip(1)])  # the flip comes after the crop: try each
        windows = both.unfold(1, 16, 1).unfold(2, 16, 1)
        hits = (windows == sample["hr"]).all(-1).all(-1) | (windows == sample["hr"].flip(-1)).all(
            -1
        ).all(-1)
        assert hits.any()
        places.add(tuple(hits.nonzero()[0].tolist()))
    assert len(places) > 1


def test_half_of_the_samples_are_flipped(data: Path, task: Task) -> None:
    chain = train_transforms(override(task, ["degradation=clean"]), "diffusion")
    patient = find_patients(data)[0]
    upright = evaluation_transforms(task)({"patient": patient, "slice": 1})["hr"]
    flips = []
    for seed in range(40):
        hr = chain.set_random_state(seed=seed)({"patient": patient, "slice": 1})["hr"]
        is_same, is_flipped = torch.equal(hr, upright), torch.equal(hr, upright.flip(-1))
        assert is_same != is_flipped
        flips.append(is_flipped)
    assert 10 <= sum(flips) <= 30


def test_all_flips_are_the_eight_views_of_a_slice(data: Path, task: Task) -> None:
    settings = ["degradation=clean", "training.flips=all"]
    chain = train_transforms(override(task, settings), "diffusion")
    patient = find_patients(data)[0]
    upright = evaluation_transforms(task)({"patient": patient, "slice": 1})["hr"]
    views = [
        turned.rot90(quarter, (-2, -1))
        for turned in (upright, upright.flip(-1))
        for quarter in range(4)
    ]
    found = []
    for seed in range(120):
        hr = chain.set_random_state(seed=seed)({"patient": patient, "slice": 1})["hr"]
        (view,) = [k for k, view in enumerate(views) if torch.equal(hr, view)]
        found.append(view)
    assert min(found.count(view) for view in range(8)) >= 5


def test_shifted_samples_are_parts_of_the_mirrored_slice(data: Path, task: Task) -> None:
    settings = ["degradation=clean", "training.shift_probability=0.5"]
    chain = train_transforms(override(task, settings), "diffusion")
    patient = find_patients(data)[0]
    upright = evaluation_transforms(task)({"patient": patient, "slice": 1})["hr"][0]
    mirrored = torch.from_numpy(np.pad(upright.numpy(), 32, mode="symmetric"))
    windows = mirrored.unfold(0, 64, 1).unfold(1, 64, 1)
    places = []
    for seed in range(30):
        hr = chain.set_random_state(seed=seed)({"patient": patient, "slice": 1})["hr"][0]
        hits = [(windows == view).all(-1).all(-1) for view in (hr, hr.flip(-1))]
        assert (hits[0] | hits[1]).any()
        places.append(tuple((hits[0] | hits[1]).nonzero()[0].tolist()))
    assert 8 <= sum(place == (32, 32) for place in places) <= 22
    assert len(set(places)) > 8


def reduced_samples(data: Path, task: Task, stage: Any, *settings: str) -> list[dict[str, Any]]:
    settings = ("training.reduce_probability=1", "training.largest_reduction=2", *settings)
    samples = TrainingSlices(override(task, settings), stage, find_patients(data))
    return [samples[k] for k in range(20)]


def test_reduced_slices_are_wider_spaced_and_lie_in_air(data: Path, task: Task) -> None:
    spacings = []
    for sample in reduced_samples(data, task, "diffusion"):
        assert sample["hr"].shape == (1, task.slice_px, task.slice_px)
        spacings.append(sample["spacing_mm"] / (0.5 * 128 / task.slice_px))
    assert 1.2 < min(spacings) < 1.5  # factors below 1.25 would blur
    assert 1.7 < max(spacings) <= 2.05


def test_a_reduced_slice_lies_where_chance_puts_it() -> None:
    hr = torch.arange(48.0 * 60).reshape(1, 48, 60)
    found, places = [], []
    for seed in range(6):
        reduce = RandReduceD(["hr"], 1.0, largest=1.25, least_px=80)
        reduce.set_random_state(seed)
        sample = reduce({"hr": hr, "spacing_mm": 0.5})
        assert sample["hr"].shape == (1, 80, 80)
        assert sample["spacing_mm"] == 0.625
        rows, columns = ((sample["hr"][0] > -1024).any(dim=k).nonzero()[:, 0] for k in (1, 0))
        places.append((int(rows[0]), int(columns[0])))
        found.append(sample["hr"][0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    assert {image.shape for image in found} == {(38, 48)}
    assert all(torch.equal(image, found[0]) for image in found)
    assert len(set(places)) > 3
    assert float(found[0].mean()) == pytest.approx(float(hr.mean()), rel=1e-4)


def test_crops_of_reduced_slices_lie_within_them(data: Path, task: Task) -> None:
    crop = task.slice_px // 2
    for sample in reduced_samples(
        data, task, "autoencoder", f"training.autoencoder.crop_px={crop}", "training.flips=x"
    ):
        assert sample["hr"].shape == (1, crop, crop)
        assert sample["hr"].mean() > -0.99  # a slice is wider than its air


def test_reducing_keeps_the_mean_of_what_lies_in_air(data: Path, task: Task) -> None:
    reduce = RandReduceD(["hr"], 1.0, largest=1.6, least_px=96)
    reduce.set_random_state(3)
    hr = torch.full((1, 96, 96), -1024.0)
    hr[:, 20:70, 30:80] = torch.randn(1, 50, 50, generator=torch.Generator().manual_seed(0)) * 90
    found = reduce({"hr": hr, "spacing_mm": 0.5})
    factor = found["spacing_mm"] / 0.5
    assert 1.25 <= factor <= 1.61
    mass = [float((image.double() + 1024).sum()) for image in (hr, found["hr"])]
    assert mass[1] * factor**2 == pytest.approx(mass[0], rel=1e-5)


def test_a_mixture_of_degradations_reaches_the_samples(data: Path, task: Task) -> None:
    settings = ["degradation=paper-train", "degradation_mix={clean: 0.5}", "training.flips=x"]
    samples = TrainingSlices(override(task, settings), "diffusion", find_patients(data))
    errors = [
        float(
            (functional.interpolate(hr[None], scale_factor=0.25, mode="area")[0] - lr).abs().max()
        )
        for hr, lr in ((sample["hr"], sample["lr"]) for sample in (samples[k] for k in range(40)))
    ]
    assert 10 <= sum(error < 1e-6 for error in errors) <= 30


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_crop_that_does_not_divide_is_refused(task: Task, stage: Any) -> None:
    section = getattr(task.training, stage).model_copy(update={"crop_px": 30})
    training = task.training.model_copy(update={stage: section})
    with pytest.raises(
        MedQDMError, match=f"training.{stage}.crop_px: must be a multiple of 4.* 28"
    ):
        train_transforms(task.model_copy(update={"training": training}), stage)


def test_patients_are_drawn_with_equal_probability(data: Path, task: Task) -> None:
    samples = TrainingSlices(task, "diffusion", find_patients(data))
    drawn = [samples[index] for index in range(200)]
    counts = Counter(sample["patient"] for sample in drawn)
    assert min(counts.values()) > 33  # by slices, p0 would get 24 of 200
    assert {s["slice"] for s in drawn if s["patient"] == "p3"} == set(range(12))


def test_weights_balance_patients(data: Path, task: Task) -> None:
    weighted = override(task, ["training.patient_weights={p0: 3, p1: 0.5}"])
    samples = TrainingSlices(weighted, "diffusion", find_patients(data))
    counts = Counter(samples[index]["patient"] for index in range(220))
    expected = {"p0": 120, "p1": 20, "p2": 40, "p3": 40}  # of 3 + 0.5 + 1 + 1
    for patient, number in expected.items():
        assert abs(counts[patient] - number) < 3.5 * number**0.5


@pytest.mark.parametrize("weight", ["0", "-1", ".inf", ".nan"])
def test_a_weight_must_be_a_number_above_0(task: Task, weight: str) -> None:
    with pytest.raises(MedQDMError, match=r"patient_weights\.p0"):
        override(task, [f"training.patient_weights={{p0: {weight}}}"])


def test_a_sample_is_a_function_of_seed_stage_and_number(data: Path, task: Task) -> None:
    patients = find_patients(data)
    samples = TrainingSlices(task, "diffusion", patients)
    later = samples[7]
    assert torch.equal(TrainingSlices(task, "diffusion", patients)[7]["lr"], later["lr"])
    assert not torch.equal(samples[8]["lr"], later["lr"])
    for other in (
        TrainingSlices(task, "autoencoder", patients),
        TrainingSlices(override(task, ["training.seed=1"]), "diffusion", patients),
    ):
        assert not torch.equal(other[7]["lr"], later["lr"])


# loaders


def loaded(task: Task, data: Path, num: int) -> list[dict[str, Any]]:
    module = SliceDataModule(task, data, "diffusion")
    module.setup()
    batches = iter(module.train_dataloader())
    return [next(batches) for _ in range(num)]


def test_the_number_of_workers_changes_nothing(data: Path, task: Task) -> None:
    alone = loaded(task, data, 3)
    helped = loaded(override(task, ["training.num_workers=2"]), data, 3)
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["hr"], other["hr"])
        assert torch.equal(one["lr"], other["lr"])
        assert one["patient"] == other["patient"]
    assert alone[0]["hr"].shape == (4, 1, 64, 64)


def test_training_sees_training_patients_only(data: Path, task: Task) -> None:
    task = override(task, ["training.validation_patients=[p1]"])
    seen = {name for batch in loaded(task, data, 10) for name in batch["patient"]}
    assert seen == {"p0", "p2", "p3"}


def test_processes_take_turns() -> None:
    ranks = [list(BatchNumbers(3, 2, rank, 2)) for rank in range(2)]
    assert sorted(number for batch in ranks[0] + ranks[1] for number in batch) == list(range(12))
    assert ranks[0][0] == [0, 1]
    assert ranks[1][0] == [2, 3]


def test_a_loader_goes_on_where_it_was(data: Path, task: Task) -> None:
    module = SliceDataModule(task, data, "diffusion")
    module.setup()
    straight = loaded(task, data, 5)
    first = module.train_dataloader()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second = module.train_dataloader()
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second))["lr"], straight[3]["lr"])


def test_a_second_epoch_brings_new_samples() -> None:
    numbers = BatchNumbers(2, 1, 0, 1)
    numbers.next_batch = 2
    assert list(numbers) == [[2], [3]]
    assert len(numbers) == 2


class Recorder(pl.LightningModule):  # type: ignore[misc]
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        pass

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        self.seen.append(float(batch["lr"].sum()))
        return self.weight * batch["lr"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Lightning looks at the machine's cores; the loader here is small on purpose
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
# Lightning 2.6 asks torch 2.13 for its tree leaves in the old way
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_resumed_run_sees_the_batches_it_missed(data: Path, task: Task, tmp_path: Path) -> None:
    task = override(task, ["training.diffusion.steps=6"])

    def fit(steps: int, resume: Path | None = None) -> tuple[Recorder, pl.Trainer]:
        recorder = Recorder()
        trainer = pl.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, use_distributed_sampler=False, default_root_dir=tmp_path,
        )  # fmt: skip
        module = SliceDataModule(task, data, "diffusion")
        trainer.fit(recorder, module, ckpt_path=resume, weights_only=True)
        return recorder, trainer

    straight, _ = fit(6)
    first, trainer = fit(4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(6, tmp_path / "last.ckpt")
    assert len(set(straight.seen)) == 6
    assert first.seen + second.seen == straight.seen


def test_validation_is_fixed_and_of_held_out_patients(data: Path, task: Task) -> None:
    task = override(task, ["training.validation_patients=[p1,p3]"])
    looks = []
    for seed in (0, 1):
        module = SliceDataModule(override(task, [f"training.seed={seed}"]), data, "diffusion")
        module.setup()
        looks.append(list(module.val_dataloader()))
    batch = looks[0][0]
    assert batch["patient"] == ["p1", "p1", "p3", "p3"]
    assert batch["slice"].tolist() == [1, 4, 3, 9]
    assert batch["hr"].shape == (4, 1, 64, 64)
    assert torch.equal(batch["lr"], looks[1][0]["lr"])


def test_the_record_counts_and_names_nobody(data: Path, task: Task) -> None:
    held_out = override(task, ["training.validation_patients=[p1]"])
    module = SliceDataModule(held_out, data, "diffusion")
    assert module.record() == {
        "train_patients": 3,
        "train_slices": 19,
        "validation_patients": 1,
        "validation_slices": 6,
        "lr_spacing_mm": [4.0, 4.0],
    }
    reduced = ["training.reduce_probability=0.1", "training.largest_reduction=1.5"]
    module = SliceDataModule(override(held_out, reduced), data, "diffusion")
    assert module.record()["lr_spacing_mm"] == [4.0, 6.0]


def test_hr_samples_are_whole_slices_of_training_patients(data: Path, task: Task) -> None:
    module = SliceDataModule(task, data, "autoencoder")
    slices = list(module.sample_hr(5))
    assert len(slices) == 5
    assert all(hr.shape == (1, 64, 64) and hr.min() >= -1 and hr.max() <= 1 for hr in slices)


# prepared sets


def test_a_prepared_set_equals_its_volumes(data: Path, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "set"
    written: list[int] = []
    assert prepare(task, data, out, limit=6, progress=written.append) == 6
    raw = list(iterate_pairs(task, data, limit=6))
    kept = list(load_prepared(out, task))
    assert written == [1, 2, 3, 4, 5, 6]
    assert len(raw) == len(kept) == 6
    for one, other in zip(raw, kept, strict=True):
        np.testing.assert_array_equal(one["hr_hu"], other["hr_hu"])
        np.testing.assert_array_equal(one["lr_hu"], other["lr_hu"])
        assert one["hr_hu"].dtype == one["lr_hu"].dtype == np.float32
        assert [one[k] for k in ("patient", "slice", "spacing_mm")] == [
            other[k] for k in ("patient", "slice", "spacing_mm")]  # fmt: skip
    assert raw[0]["hr_hu"].shape == (64, 64)
    assert raw[0]["lr_hu"].shape == (16, 16)
    assert raw[0]["hr_hu"].min() >= task.hu_window.low_hu


def test_the_manifest_says_how_each_slice_was_made(data: Path, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "set"
    prepare(task, data, out)
    manifest = read_manifest(out, task)
    assert manifest["task"] == "tiny"
    assert len(manifest["slices"]) == 25
    assert len({entry["seed"] for entry in manifest["slices"]}) == 25
    for entry, pair in zip(manifest["slices"], load_prepared(out, task), strict=True):
        assert entry["spacing_mm"] == [1.0, 1.0]
        params = DegradationParams(
            **{**entry["params"], "sigma_px": tuple(entry["params"]["sigma_px"])}
        )
        hr = torch.from_numpy(task.hu_window.normalize(pair["hr_hu"]))[None]
        lr_hu = task.hu_window.denormalize(degrade(hr, params, task.upscale)[0].numpy())
        np.testing.assert_array_equal(lr_hu, pair["lr_hu"])


def test_pairs_do_not_depend_on_the_other_patients(data: Path, task: Task) -> None:
    everything = {(p["patient"], p["slice"]): p["lr_hu"] for p in iterate_pairs(task, data)}
    other_seed = next(iterate_pairs(task, data, seed=1))
    for child in ("p0", "p1", "p3"):
        (data / child / "image.nii.gz").unlink()
        (data / child).rmdir()
    for pair in iterate_pairs(task, data):
        np.testing.assert_array_equal(pair["lr_hu"], everything["p2", pair["slice"]])
    assert not np.array_equal(other_seed["lr_hu"], everything["p0", 0])


def test_a_prepared_set_is_whole_or_not_there(data: Path, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "set"

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(task, data, out, progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_a_full_folder_needs_overwrite(data: Path, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(MedQDMError, match="must be empty, got files in it"):
        prepare(task, data, out, limit=1)
    with pytest.raises(MedQDMError, match="only an earlier output"):
        prepare(task, data, out, limit=1, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    prepare(task, data, out, limit=1)
    (out / "stale.txt").write_text("old")
    prepare(task, data, out, limit=1, overwrite=True)
    assert is_prepared(out)
    assert not (out / "stale.txt").exists()


def test_a_set_of_another_task_is_refused(data: Path, task: Task, tmp_path: Path) -> None:
    prepare(task, data, tmp_path / "set", limit=1)
    for change in ("upscale=2", "window.width_hu=400"):
        with pytest.raises(MedQDMError, match="must be prepared for upscale"):
            list(load_prepared(tmp_path / "set", override(task, [change])))


def test_a_damaged_set_is_refused(data: Path, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert not is_prepared(tmp_path)
    with pytest.raises(MedQDMError, match="must be a folder written by medqdm prepare"):
        read_manifest(out, task)
    prepare(task, data, out, limit=1)
    file = out / read_manifest(out, task)["slices"][0]["file"]
    whole = file.read_bytes()
    for damaged in (whole[:200], b"", b"text"):
        file.write_bytes(damaged)
        with pytest.raises(MedQDMError, match="the set is damaged"):
            list(load_prepared(out, task))
    (out / "manifest.json").write_text(json.dumps({"slices": []}))
    with pytest.raises(MedQDMError, match="got KeyError"):
        read_manifest(out, task)
