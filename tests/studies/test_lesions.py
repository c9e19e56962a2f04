"""Lesions: discs of known contrast, and what a method of known response makes of them."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medqdm.config import load_task
from medqdm.data import find_patients
from medqdm.errors import MedQDMError
from medqdm.evaluate import Interpolation
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume
from studies.detectability import Disc, Lesions, measure_lesions, open_cases
from studies.detectability.discs import (
    CONTRASTS_HU,
    DIAMETERS_MM,
    KINDS,
    add_discs,
    area_noise_hu,
    place_discs,
    recovered_contrast,
)
from studies.detectability.lesions import Case, Recovery
from studies.detectability.lesions_report import markdown, verdicts, write_lesions

Image = NDArray[np.float32]
TASK = load_task("tiny", ["slice_px=256"])


def body(seed: int = 0) -> Image:
    """Noisy soft tissue with a lung and a bone, in air."""
    y, x = np.mgrid[:256, :256] - 127.5
    hu = np.full((256, 256), -1000.0)
    hu[np.hypot(y, x) < 115] = 40
    hu[np.hypot(y, x - 60) < 30] = -850
    hu[np.hypot(y - 80, x) < 10] = 600
    hu += np.random.default_rng(seed).normal(0, 15, hu.shape)
    return hu.clip(-1000, 1000).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    affine = np.diag([-0.7, -0.7, 3.0, 1.0])
    for seed, name in enumerate("ab"):
        hu = np.stack([body(2 * seed), body(2 * seed + 1)]).transpose(2, 1, 0).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(hu, affine), folder / f"{name}.nii.gz")
    return folder


def cases(data: Path, seed: int = 0, *settings: str) -> list[Case]:
    task = load_task("tiny", ["slice_px=256", *settings])
    return list(open_cases(task, find_patients(data), limit=None, seed=seed)[0])


# discs


@pytest.mark.parametrize("radius_px", [1.0, 1.43, 5.0, 7.14])
def test_a_disc_has_its_area_and_its_middle(radius_px: float) -> None:
    share = Disc(20, 31, radius_px, 50, 4).coverage((48, 64)).astype(np.float64)
    assert share.sum() == pytest.approx(np.pi * radius_px**2, rel=0.02)
    assert share.max() <= 1
    y, x = np.mgrid[:48, :64]
    assert (share * y).sum() / share.sum() == pytest.approx(20)
    assert (share * x).sum() / share.sum() == pytest.approx(31)
    cut = Disc(0, 63, radius_px, 50, 4).coverage((48, 64))
    assert cut[0, 63] == 1
    assert cut.sum() == pytest.approx(share[20:, :32].sum())  # a corner leaves a quarter


@pytest.mark.parametrize("kept", [0.7, 0.0, 1.0, -0.2, 1.3])
@pytest.mark.parametrize("radius_px", [1.0, 1.43, 7.14])
def test_a_disc_recovered_by_a_share_measures_that_share(kept: float, radius_px: float) -> None:
    disc = Disc(60, 50, radius_px, -20, 4)
    difference = np.float32(kept * -20) * disc.coverage((128, 128)) + np.float32(3)
    assert recovered_contrast(difference, disc, 4) == pytest.approx(kept, abs=1e-5)


def test_a_blurred_disc_loses_contrast_and_a_wide_one_less() -> None:
    task = load_task("tiny", ["slice_px=256"])
    found = []
    for radius_px in (1.5, 4.0, 8.0):
        disc = Disc(128, 128, radius_px, 50, 4)
        lr = add_discs(np.zeros((256, 256), np.float32), [disc])
        lr = lr.reshape(64, 4, 64, 4).mean(axis=(1, 3))
        found.append(recovered_contrast(upsample_bicubic(lr, task.upscale), disc, 4))
    assert 0.1 < found[0] < found[1] < found[2] < 1.1


def test_discs_lie_in_flat_soft_tissue_far_apart_all_kinds_alike() -> None:
    hr, placed = body(), Counter[tuple[float, float]]()
    for seed in range(12):
        discs = place_discs(
            hr,
            TASK.hu_window,
            spacing_mm=0.7,
            upscale=4,
            random=np.random.default_rng(seed),
            placed=placed,
        )
        assert len(discs) >= 6
        for k, disc in enumerate(discs):
            around = disc.distance(hr.shape) <= disc.radius_px + 1
            assert abs(hr[around].mean() - 40) < 20
            for other in discs[:k]:
                apart = np.hypot(disc.y - other.y, disc.x - other.x)
                assert apart >= disc.radius_px + other.radius_px + 24
    assert set(placed) == set(KINDS)
    assert max(placed.values()) - min(placed.values()) <= 2


def test_no_place_in_air_lung_or_texture() -> None:
    for hu in (-1000, -850, 600):
        flat = np.full((128, 128), hu, dtype=np.float32)
        assert _placed(flat) == []
    noise = np.random.default_rng(0).normal(0, 4000, (128, 128))
    rough = (40 + ndimage.gaussian_filter(noise, 4)).astype(np.float32)
    assert _placed(rough) == []
    assert _placed(np.full((128, 128), 40, dtype=np.float32)) != []


def _placed(hr: Image) -> list[Disc]:
    random = np.random.default_rng(0)
    return place_discs(
        hr, TASK.hu_window, spacing_mm=0.7, upscale=4, random=random, placed=Counter()
    )


# cases


def test_inputs_differ_by_the_discs_alone_because_noise_cancels(data: Path) -> None:
    quiet = "test_degradation.jpeg_quality=[0,0]", "test_degradation.round_to_8_bit=false"
    for case in cases(data, 0, *quiet):
        difference = case.lr_hu - case.plain_lr_hu
        near = np.zeros(difference.shape, dtype=np.bool_)
        for disc in case.discs:
            lr_disc = replace(disc, y=disc.y // 4, x=disc.x // 4)
            near |= lr_disc.distance(difference.shape) <= disc.radius_px / 4 + 5
        assert np.abs(difference[~near]).max() < 0.01
        assert np.abs(difference[near]).max() > 5
        noise = np.abs(case.plain_lr_hu - case.plain_lr_hu.mean())[near].mean()
        assert noise > 1


def test_cases_come_back_with_the_seed(data: Path) -> None:
    one, again, other = cases(data), cases(data), cases(data, 1)
    assert len(one) == 4
    assert all((a.lr_hu == b.lr_hu).all() for a, b in zip(one, again, strict=True))
    assert [a.discs for a in one] == [b.discs for b in again]
    assert [a.discs for a in one] != [c.discs for c in other]


# recoveries


class Keeps:
    """A method that knows the truth and keeps a share of the discs, by their contrast."""

    def __init__(self, name: str, cases: list[Case], share: Callable[[Disc], float]) -> None:
        self.name = name
        self._outputs = {}
        for case in cases:
            plain = body()
            kept = [replace(d, contrast_hu=share(d) * d.contrast_hu) for d in case.discs]
            self._outputs[case.plain_lr_hu.tobytes()] = plain
            self._outputs[case.lr_hu.tobytes()] = add_discs(plain, kept)

    def enhance(self, volume: Volume) -> Iterator[Image]:
        return (self._outputs[np.asarray(hu).tobytes()] for hu in volume.hu)


SETTINGS = {
    "task": {"name": "tiny", "upscale": 4, "quadtree": {"threshold": 0.15}},
    "weights_sha256": "ab" * 32, "medqdm": "1", "seed": 0, "device": "cpu", "precision": "fp32",
    "threshold_hu": 150,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(data: Path) -> Lesions:
    """Bicubic, a method that keeps 70 % of all, and one that erases faint ones."""
    known = cases(data)

    def faint(disc: Disc) -> float:
        return 0.01 if abs(disc.contrast_hu) <= 50 else 0.9

    methods = [
        Interpolation("bicubic", upsample_bicubic, 4),
        Keeps("s = 0.15", known, lambda _disc: 0.7),
        Keeps("s = 2", known, faint),
    ]
    return measure_lesions(methods, known, settings=SETTINGS, default="s = 0.15")


def test_every_disc_measures_what_the_method_keeps(found: Lesions) -> None:
    kept = [r for r in found.recoveries if r.method == "s = 0.15"]
    assert len(kept) == len(found.recoveries) / 3 >= 30
    assert all(r.recovered == pytest.approx(0.7, abs=1e-3) for r in kept)
    for kind in KINDS:
        mean = found.mean("s = 0.15", kind)
        if found.count(kind):
            assert mean is not None
            assert mean.mean == pytest.approx(0.7, abs=1e-3)
        else:
            assert mean is None


def test_what_is_erased_is_told_against_what_bicubic_shows(found: Lesions) -> None:
    judged = found.judged()
    assert judged
    for kind in judged:
        assert found.count(kind, only_shown=True) >= 3
    assert found.erased("s = 0.15") == found.erased("bicubic") == []
    assert found.erased("s = 2") == [kind for kind in judged if abs(kind[0]) <= 50] != []
    default, high = verdicts(found)
    assert f"s = 0.15 (the default): erases none of {len(judged)} kinds" in default
    assert f"s = 2: erases {len(found.erased('s = 2'))} of {len(judged)} kinds" in high


def made(values: dict[str, list[float]], noise_hu: float = 1.0, contrast: float = 10) -> Lesions:
    """Given recoveries of discs of 4 mm, a patient each."""
    rows = [
        Recovery(f"p{k}", 0, 0, method, contrast, 4.0, v, noise_hu, 1.0)
        for method, numbers in values.items()
        for k, v in enumerate(numbers)
    ]
    return Lesions(SETTINGS, "model", rows)


@pytest.mark.parametrize("contrast", [10.0, -10.0])
def test_half_of_bicubic_is_the_border(contrast: float) -> None:
    bicubic = [0.8, 0.6, 0.7]
    kept = made({"bicubic": bicubic, "model": [0.36] * 3}, contrast=contrast)
    assert kept.judged() == [(contrast, 4.0)]
    assert kept.erased("model") == []
    lost = made({"bicubic": bicubic, "model": [0.34] * 3}, contrast=contrast)
    assert lost.erased("model") == [(contrast, 4.0)]
    mixed = made({"bicubic": [0.8] * 4, "model": [0.8, 0.1, 0.41, -0.5]}, contrast=contrast)
    assert mixed.erased_share("model") == 0.5


def test_what_drowns_in_bicubics_noise_is_not_judged() -> None:
    values = {"bicubic": [0.8] * 3, "model": [0.0] * 3}
    assert made(values, noise_hu=2.6).judged() == [(10.0, 4.0)]  # 8 HU over 2.6 HU
    drowned = made(values, noise_hu=2.7)
    assert drowned.judged() == drowned.erased("model") == []
    assert drowned.erased_share("model") is None
    [line] = verdicts(drowned)
    assert line.startswith("- No verdict: of no kind does bicubic show 3 discs")
    few = made({"bicubic": [0.8, 0.8, 0.2], "model": [0.0] * 3}, noise_hu=2.6)
    assert few.judged() == []  # two of three are shown
    assert few.erased_share("model") == 1


def test_noise_of_an_area_falls_with_its_size() -> None:
    noise = np.random.default_rng(0).normal(0, 12, (512, 512)).astype(np.float32)
    places = np.random.default_rng(1).integers(20, 490, (4000, 2))
    y, x = np.mgrid[-12:13, -12:13]
    distance = np.hypot(y, x)
    for radius_px in (1.43, 3.0, 7.14):
        core = (distance <= max(1.0, 0.7 * radius_px)).sum()
        around = ((distance > radius_px) & (distance <= radius_px + 4)).sum()
        expected = 12 * (1 / core + 1 / around) ** 0.5
        assert area_noise_hu(noise, places, radius_px, 4) == pytest.approx(expected, rel=0.05)


def test_a_disc_of_coarse_pixels_is_as_visible_as_its_pixels_show() -> None:
    small = Recovery("p", 0, 0, "bicubic", 20.0, 2.0, 0.5, 2.0, 0.7)
    assert small.visibility == pytest.approx(0.5 * 20 * 0.7 / 2)
    assert Disc(40, 40, 1 / 0.859, 20.0, 2.0).core_coverage((80, 80)) == pytest.approx(
        0.70, abs=0.02
    )
    assert Disc(40, 40, 2 / 0.664, 20.0, 4.0).core_coverage((80, 80)) == 1


def test_the_report_has_a_table_for_each_method(found: Lesions, tmp_path: Path) -> None:
    write_lesions(found, tmp_path / "out", about={"seed": 0})
    files = ["discs.png", "lesions.json", "lesions.md", "lesions.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    text = markdown(found, {"seed": 0})
    for method in found.methods:
        assert f"## {method}: recovered contrast" in text
    section = text.split("## s = 2: recovered contrast")[1].split("##")[0]
    assert "erased" in section
    assert "erased" not in text.split("## s = 0.15: recovered contrast")[1].split("##")[0]
    counts = text.split("## Number of discs")[1].splitlines()[4:]
    cells = [c.split(" of ") for line in counts for c in line.split("|")[2:-1]]
    assert len(cells) == len(CONTRASTS_HU) * len(DIAMETERS_MM)
    assert sum(int(whole) for _, whole in cells) == len(found.recoveries) // 3
    assert sum(int(shown) for shown, _ in cells) == len(found.shown)


def test_slices_without_room_are_refused_when_none_has_any() -> None:
    air = np.full((64, 64), -1000, dtype=np.float32)
    case = Case("a", 0, air, air[::4, ::4], air[::4, ::4], [], {})
    with pytest.raises(MedQDMError, match="--lesions: slices must have flat soft tissue"):
        measure_lesions(
            [Interpolation("bicubic", upsample_bicubic, 4)], [case], settings={}, default="bicubic"
        )
