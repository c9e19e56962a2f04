"""A reader study: drawn by lot, matched, saved, unblinded; and its figures against known ones."""

import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medqdm import io
from medqdm.config import load_task
from medqdm.errors import MedQDMError
from medqdm.picture import upsample_bicubic
from medqdm.review.rating import SCORES
from studies.command import run
from studies.reader_study import (
    PAIRS,
    Answer,
    StudyServer,
    analyse_study,
    make_study,
    read_answers,
    read_key,
    read_study,
    save_answer,
    tables_of,
    write_results,
)
from studies.reader_study.__main__ import app
from studies.reader_study.build import _patients
from studies.reader_study.match import Material, match
from studies.reader_study.plan import ARMS, Showing, order_showings, pick_cases
from studies.reader_study.statistics import (
    clustered_share,
    ordinal_alpha,
    over_patients,
    same_answers,
    signed_rank,
    weighted_kappa,
    wilson,
)

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def made(exams, tmp_path_factory):
    """The folder of a study with two readers, six cases, three of them with a reference."""
    folder = tmp_path_factory.mktemp("study") / "reading"
    make(exams, folder)
    return folder


def make(exams, folder, **changes):
    options = {"readers": 2, "cases": 6, "stack": 2, "repeat": 0.25, "seed": 5, "slice_axis": 2}
    return make_study(
        [exams / "enhanced"], folder,
        **{"sources": [exams / "sources"], "references": [exams / "references"],
           **options, **changes},
    )  # fmt: skip


@pytest.fixture
def study(made, tmp_path):
    return shutil.copytree(made, tmp_path / "reading")


def answer_all(folder, choose, score=lambda _reader, _arm, _name: 3, until=None):
    """Let every reader answer by a rule: which arm of two is preferred, and its scores."""
    study, key = read_study(folder), read_key(folder)
    for reader in study.readers:
        for number, trial in enumerate(reader.trials[:until], 1):
            arms = {"a": key.images[trial.a].arm, "b": key.images[trial.b].arm}
            chosen = choose(reader.name, trial.case, set(arms.values()))
            sides = {arm: side for side, arm in arms.items()}
            scores = {
                f"{name}_{side}": score(reader.name, arm, name)
                for side, arm in arms.items()
                for name in SCORES
            }
            answer = Answer(
                study=study.study, seed=study.seed, reader=reader.name, trial=number,
                case=trial.case, image_a=trial.a, image_b=trial.b,
                preference=sides.get(chosen, "none"), seconds=10.0 * number, **scores,
            )  # fmt: skip
            save_answer(folder / "ratings.csv", answer)


class TestPlan:
    def test_cases_are_spread_and_never_overlap(self):
        picks = pick_cases([300, 40, 5], 30, 5, seed=1)
        assert len(picks) == 30
        assert {pick.output for pick in picks} == {0, 1, 2}
        assert Counter(pick.output for pick in picks)[2] == 5
        for one, other in pairwise(picks):
            assert one.output < other.output or one.slices.stop <= other.slices.start
        long = [pick.slices.start for pick in picks if pick.output == 0]
        assert max(np.diff([0, *long, 300])) <= 2 * 300 / len(long) + 5
        assert all(len(pick.slices) == 5 for pick in picks if pick.output == 0)

    def test_the_seed_alone_decides(self):
        assert pick_cases([50, 60], 8, 3, seed=1) == pick_cases([50, 60], 8, 3, seed=1)
        assert pick_cases([50, 60], 8, 3, seed=1) != pick_cases([50, 60], 8, 3, seed=2)

    @pytest.mark.parametrize("cases", [1, 13])
    def test_too_few_or_too_many_cases_are_refused(self, cases):
        with pytest.raises(MedQDMError, match=r"--cases: must be 2 .* to 12 .*, got"):
            pick_cases([8, 4], cases, 3, seed=0)

    @pytest.mark.parametrize("reader", range(4))
    @pytest.mark.parametrize("count", [7, 12])
    def test_every_pair_comes_once_with_balanced_sides(self, reader, count):
        arms = {f"c{k}": ARMS if k % 2 else ARMS[:2] for k in range(count)}
        shown = order_showings(arms, reader=reader, repeat=0, seed=3)
        told = Counter((s.case, frozenset((s.a, s.b))) for s in shown)
        assert set(told.values()) == {1}
        assert len(shown) == count + 2 * (count // 2)
        for pair in {frozenset((s.a, s.b)) for s in shown}:
            left = Counter(s.a for s in shown if {s.a, s.b} == pair)
            assert max(left.values()) - min(left.values()) <= 1
        assert not any(one.case == other.case for one, other in pairwise(shown))

    def test_repeats_come_half_a_reading_later_with_sides_changed(self):
        arms = {f"c{k}": ARMS[:2] for k in range(20)}
        shown = order_showings(arms, reader=0, repeat=0.25, seed=3)
        assert len(shown) == 25
        first: dict[str, tuple[int, Showing]] = {}
        gaps = []
        for place, showing in enumerate(shown):
            if showing.case in first:
                before, old = first[showing.case]
                gaps.append(place - before)
                assert showing == old.swapped()
            first[showing.case] = place, showing
        assert len(gaps) == 5
        assert min(gaps) >= 10

    def test_readers_get_orders_of_their_own(self):
        arms = {f"c{k}": ARMS[:2] for k in range(10)}
        orders = [
            [s.case for s in order_showings(arms, reader=r, repeat=0, seed=3)] for r in range(5)
        ]
        assert all(a != b for k, a in enumerate(orders) for b in orders[:k])


class TestMatch:
    def test_sources_and_references_are_found_in_any_order(self, made):
        key = read_key(made)
        arms = {}
        for image in key.images.values():
            arms.setdefault(key.cases[image.case].output, set()).add(image.arm)
        assert arms == {1: {*ARMS}, 2: {"bicubic", "enhanced"}}

    def test_images_are_the_arms(self, exams, made):
        key, case = read_key(made), read_study(made).cases["c1"]
        names = {i.arm: name for name, i in key.images.items() if i.case == "c1"}
        stacks = {arm: np.load(made / "images" / f"{name}.npy") for arm, name in names.items()}
        assert key.cases["c1"].output == 1
        assert {stack.shape for stack in stacks.values()} == {(2, 120, 176)}
        from medqdm.review import load_review  # noqa: PLC0415

        review = load_review(
            exams / "enhanced" / "exam-1", exams / "sources" / "Doe^Jane-1.nii.gz", slice_axis=2
        )
        z = key.cases["c1"].slices[1] - 1
        content = review.at(z)
        np.testing.assert_array_equal(stacks["enhanced"][1], content.enhanced_hu)
        np.testing.assert_array_equal(stacks["bicubic"][1], np.rint(content.bicubic_hu.clip(-1024)))
        np.testing.assert_array_equal(
            stacks["reference"][1], (content.enhanced_hu + 7).clip(-1000, 2000)
        )
        assert case.pixel_mm == pytest.approx((0.3, 0.2))
        assert case.letters == ("R", "L", "A", "P")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sources": ["{root}/sources/Doe^Jane-1.nii.gz"]}, "must show what the output shows"),
            ({"sources": ["{root}/references"]}, "matrix must be 4 times its source's"),
            ({"sources": ["{root}/enhanced"]}, "--source: must hold CT series, got none"),
            ({"sources": []}, "--source: must hold the series"),
            ({"sources": ["{root}/no-such"]}, "no-such"),
            ({"references": ["{root}/sources/Doe^Jane-1.nii.gz"]}, "must show the same slices"),
            ({"references": ["{root}/references", "{root}/copy"]}, "one series of each output"),
            ({"readers": 0}, "--readers: must be 1 to 1000, got 0"),
            ({"repeat": 0.6}, "--repeat: must be 0 to 0.5, got 0.6"),
            ({"stack": 0}, "--stack: must be 1 to 1000, got 0"),
            ({"cases": 99}, "--cases: must be 2"),
        ],
    )
    def test_wrong_matches_and_numbers_are_refused(self, exams, tmp_path, changes, message):
        if "copy" in str(changes):
            shutil.copytree(exams / "references", exams / "copy", dirs_exist_ok=True)
        filled = {
            name: [text.format(root=exams) for text in value] if isinstance(value, list) else value
            for name, value in changes.items()
        }
        with pytest.raises(MedQDMError, match=message) as caught:
            make(exams, tmp_path / "study", **filled)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "study").exists()

    def test_an_output_without_its_source_is_named(self, exams, tmp_path):
        sources = [exams / "sources" / "Doe^Jane-1.nii.gz", exams / "references"]
        with pytest.raises(MedQDMError, match=r"exam-2: exactly one --source .* none that fits"):
            make(exams, tmp_path / "study", sources=sources)

    def test_a_dicom_series_is_found_among_others(self, tmp_path):
        source = io.read(DATA / "demo-series")
        enlarged = (upsample_bicubic(hu, 4) for hu in source.hu)
        io.write_series(
            source, enlarged, tmp_path / "out", upscale=4, description="test",
            software_version="0", weights_id="0", uid_entropy=["0"],
        )  # fmt: skip
        refined = np.zeros((len(source.hu), 64, 64), dtype=bool)
        np.savez_compressed(tmp_path / "out" / "refined.npz", refined=refined)
        task = load_task("tiny").model_dump(mode="json", exclude={"training"})
        (tmp_path / "out" / "run.json").write_text(json.dumps({"task": task}))
        (found,) = match([tmp_path / "out"], [DATA / "vendors", DATA / "hr-slices", DATA])
        np.testing.assert_array_equal(found.review.before.origins_mm, source.origins_mm)
        np.testing.assert_array_equal(found.review.before.hu[2], source.hu[2])

    def test_a_study_never_replaces_anything(self, exams, made):
        before = sorted(p.name for p in made.iterdir())
        with pytest.raises(MedQDMError, match="must be empty"):
            make(exams, made)
        assert sorted(p.name for p in made.iterdir()) == before

    def test_a_folder_of_something_else_is_refused(self, exams, tmp_path):
        with pytest.raises(MedQDMError, match="or hold some, got none"):
            make_study([exams / "sources"], tmp_path / "study", sources=[exams / "sources"])

    def test_outputs_of_one_patient_share_a_number(self, exams):
        from medqdm.review import load_review  # noqa: PLC0415

        review = load_review(
            exams / "enhanced" / "exam-1", exams / "sources" / "Doe^Jane-1.nii.gz", slice_axis=2
        )

        def of(patient, study):
            header = Dataset()
            header.PatientID, header.StudyInstanceUID = patient, study
            volume = replace(
                review.before, source=replace(review.before.source, kind="dicom", headers=[header])
            )
            return Material(replace(review, source=volume), None)

        found = _patients([of("7", "1.2"), of("8", "1.3"), of("7", "1.4"), of("", "1.5"),
                           of("", "1.6"), Material(review, None)])  # fmt: skip
        assert found == [1, 2, 1, 3, 4, 5]


class TestFolder:
    def test_same_seed_same_study_but_new_links(self, exams, made, tmp_path):
        make(exams, tmp_path / "again")
        one, other = read_study(made), read_study(tmp_path / "again")
        assert one.cases == other.cases
        assert [r.trials for r in one.readers] == [r.trials for r in other.readers]
        assert {r.token for r in one.readers}.isdisjoint(r.token for r in other.readers)
        assert read_key(made) == read_key(tmp_path / "again")
        make(exams, tmp_path / "other", seed=6)
        assert read_key(tmp_path / "other").images.keys().isdisjoint(read_key(made).images)

    def test_nothing_but_the_key_tells_arms(self, made):
        text = (made / "study.json").read_text()
        assert not any(arm in text for arm in ARMS)
        sizes: dict[tuple[int, ...], set[int]] = {}
        for file in (made / "images").glob("*.npy"):
            sizes.setdefault(np.load(file).shape, set()).add(file.stat().st_size)
        assert all(len(found) == 1 for found in sizes.values())

    def test_no_file_names_the_patient(self, made, exams):
        for file in made.rglob("*"):
            assert "Doe" not in file.name
            if file.is_file():
                content = file.read_bytes()
                assert b"Doe" not in content
                assert str(exams).encode() not in content

    def test_a_key_of_another_study_is_refused(self, exams, study, tmp_path):
        make(exams, tmp_path / "other", seed=6)
        shutil.copy(tmp_path / "other" / "key.json", study / "key.json")
        with pytest.raises(MedQDMError, match=r"key.json: must be the key of study"):
            read_key(study)

    @pytest.mark.parametrize("content", ["", "{}", '{"study": 1}'])
    def test_a_damaged_study_is_told_in_one_line(self, study, content):
        (study / "study.json").write_text(content)
        with pytest.raises(MedQDMError, match=r"study.json: must be a file that the study command"):
            StudyServer(study)


def whole_answer(**changes):
    scores = {f"{name}_{side}": 3 for name in SCORES for side in "ab"}
    return Answer(**{
        "study": "s", "seed": 1, "reader": "r1", "trial": 1, "case": "c1", "image_a": "0" * 12,
        "image_b": "1" * 12, "preference": "a", "seconds": 12.34, **scores, **changes,
    })  # fmt: skip


class TestAnswers:
    def test_what_is_saved_is_read(self, tmp_path):
        path = tmp_path / "ratings.csv"
        odd = 'a "quote", a\nbreak, \u2028 an ä and \ud800'
        saved = [whole_answer(), whole_answer(trial=2, comment=odd, preference="none")]
        for answer in saved:
            save_answer(path, answer)
        assert read_answers(path) == saved
        assert len(path.read_text().splitlines()) == 3
        assert read_answers(tmp_path / "none.csv") == []

    @pytest.mark.parametrize(
        "wrong",
        [{"preference": "c"}, {"noise_b": 0}, {"noise_b": 6}, {"noise_a": None}, {"noise_a": True},
         {"noise_a": "3"}, {"seconds": -1}, {"seconds": float("nan")}, {"seconds": "7"}],
    )  # fmt: skip
    def test_half_an_answer_is_none(self, wrong):
        with pytest.raises(MedQDMError, match=r"^rating: "):
            whole_answer(**wrong)

    def test_a_line_cut_short_is_read_again(self, study):
        answer_all(study, lambda *_: None, until=2)
        path = study / "ratings.csv"
        whole = path.read_bytes()
        path.write_bytes(whole[:-60])
        with StudyServer(study) as server:
            assert server.progress() == {"r1": (2, 15), "r2": (1, 15)}
        assert path.read_bytes() == whole[: whole.rindex(b"\n", 0, -1) + 1]

    def test_a_header_cut_short_is_no_obstacle(self, study):
        (study / "ratings.csv").write_bytes(b"study,se")
        with StudyServer(study) as server:
            assert server.progress()["r1"] == (0, 15)
        answer_all(study, lambda *_: None, until=1)
        assert len(read_answers(study / "ratings.csv")) == 2

    def test_answers_of_another_study_are_refused(self, study):
        save_answer(study / "ratings.csv", whole_answer())
        with pytest.raises(MedQDMError, match=r"line 2 must answer the next pair"):
            StudyServer(study)
        with pytest.raises(MedQDMError, match=r"line 2 must be of study"):
            analyse_study(study)

    def test_a_full_disk_leaves_no_half_line(self, tmp_path, monkeypatch):
        path = tmp_path / "ratings.csv"
        save_answer(path, whole_answer())
        before = path.read_bytes()
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:20]))
        with pytest.raises(MedQDMError, match=r"ratings.csv: must be a file on a disk"):
            save_answer(path, whole_answer(trial=2))
        assert path.read_bytes() == before


class TestAnalysis:
    def test_who_always_prefers_one_arm(self, study):
        order = ("reference", "enhanced", "bicubic")
        answer_all(
            study,
            lambda _reader, _case, arms: min(arms, key=order.index),
            lambda _reader, arm, name: 5 - order.index(arm) if name != "noise" else 3,
        )
        results = analyse_study(study)
        counts = {
            (p.pair, p.reader): (p.wins, p.ties, p.losses, p.share) for p in results.preferences
        }
        assert counts[PAIRS[0], "all"] == (12, 0, 0, 1.0)
        assert counts[PAIRS[1], "r1"] == (3, 0, 0, 1.0)
        assert [p.bootstrap for p in results.preferences] == [None] * 9
        assert results.preferences[0].over_patients == pytest.approx((0.1581, 1.0), abs=1e-4)
        assert results.preferences[0].if_independent == pytest.approx((0.7575, 1.0), abs=1e-4)
        sharpness = {s.pair: s for s in results.scores if s.score == "sharpness"}
        assert [sharpness[pair].difference for pair in PAIRS] == [1, 1, 2]
        assert (sharpness[PAIRS[0]].first, sharpness[PAIRS[0]].second) == (4, 3)
        assert sharpness[PAIRS[0]].num_patients == 2
        assert sharpness[PAIRS[0]].p_patients == 1  # two patients prove nothing: 0.5, four times
        assert sharpness[PAIRS[0]].p_readings < 0.001
        noise = next(s for s in results.scores if s.score == "noise")
        assert (noise.difference, noise.p_patients, noise.p_readings) == (0, 1, 1)
        agreement = {a.item: a for a in results.agreements}
        assert agreement["sharpness"].alpha == pytest.approx(1)
        assert agreement["sharpness"].units == 2 * 12
        assert agreement["sharpness"].same == 1
        assert agreement["noise"].alpha is None
        for reader in results.readers:
            assert (reader.done, reader.repeats, reader.same) == (15, 3, 3)
            assert reader.score_kappa == pytest.approx(1)
            assert 0.3 < reader.left < 0.7
            assert reader.seconds[1] == 80

    def test_who_chooses_by_side_is_found_out(self, study):
        parsed, key = read_study(study), read_key(study)
        answer_all(study, lambda *_: None)
        path = study / "ratings.csv"
        rows = [replace(answer, preference="a") for answer in read_answers(path)]
        path.unlink()
        for row in rows:
            save_answer(path, row)
        reader = analyse_study(study).readers[0]
        assert reader.left == 1
        assert reader.same == 0
        assert reader.kappa <= 0
        assert len(parsed.readers[0].trials) == 15
        assert len(key.images) == 15

    def test_repeats_count_once(self, study):
        answer_all(study, lambda _reader, _case, _arms: "enhanced")
        (found,) = [
            p for p in analyse_study(study).preferences if p.pair == PAIRS[0] and p.reader == "r1"
        ]
        assert found.wins == 6

    def test_readers_who_disagree(self, study):
        answer_all(
            study, lambda reader, _case, _arms: "enhanced" if reader == "r1" else "bicubic",
            lambda reader, arm, _name: 5 if (reader == "r1") == (arm == "enhanced") else 1,
        )  # fmt: skip
        agreement = {a.item: a for a in analyse_study(study).agreements}
        assert agreement["preference"].alpha < 0
        assert agreement["sharpness"].kappas["r1", "r2"] < 0

    def test_an_unfinished_study_is_summed_up(self, study):
        answer_all(study, lambda *_: None, until=3)
        results = analyse_study(study)
        assert [(r.done, r.planned) for r in results.readers] == [(3, 15), (3, 15)]
        assert all(p.share is None for p in results.preferences)

    def test_tables_and_files(self, study):
        answer_all(study, lambda _reader, _case, _arms: "enhanced")
        results = analyse_study(study)
        titles = [table.title for table in tables_of(results)]
        assert titles == ["Preference", "Scores", "Agreement between readers", "Each reader"]
        text = write_results(results, study).read_text()
        assert (
            "| enhanced / bicubic | all | 12 | 0 | 0 | 100 % | 16 to 100 % | - | 76 to 100 % |"
            in text
        )
        found = json.loads((study / "results.json").read_text())
        assert found["preferences"][0]["wins"] == 12
        assert found["agreements"][0]["kappas"].keys() == {"r1 | r2"}
        write_results(results, study)

    def test_without_answers_or_key_it_says_so(self, study):
        with pytest.raises(MedQDMError, match="must have answers, got none"):
            analyse_study(study)
        (study / "key.json").unlink()
        with pytest.raises(MedQDMError, match=r"key.json: must be a file that the study command"):
            analyse_study(study)


def slow_kappa(one, other):
    """By the table of counts and a matrix of weights, as Cohen wrote it."""
    categories = sorted({*one, *other})
    place = {category: k for k, category in enumerate(categories)}
    observed = np.zeros((len(categories), len(categories)))
    for a, b in zip(one, other, strict=True):
        observed[place[a], place[b]] += 1 / len(one)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    weights = np.abs(np.subtract.outer(categories, categories))
    return 1 - (weights * observed).sum() / (weights * expected).sum()


class TestStatistics:
    def test_alpha_of_krippendorffs_own_example(self):
        """Computing Krippendorff's Alpha-Reliability, 2011: four observers, twelve units."""
        nan = np.nan
        ratings = np.array([
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ])  # fmt: skip
        assert ordinal_alpha(ratings) == pytest.approx(0.815, abs=5e-4)

    def test_alpha_of_one_reader_or_one_category_is_none(self):
        assert ordinal_alpha(np.array([[1.0, 2, 3]])) is None
        assert ordinal_alpha(np.array([[2.0, 2], [2, 2]])) is None
        assert ordinal_alpha(np.empty((2, 0))) is None

    def test_kappa_of_two_categories(self):
        """20 and 15 agreed, 5 and 10 not: 0.4, in many a textbook."""
        one = [1] * 25 + [0] * 25
        other = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
        assert weighted_kappa(one, other) == pytest.approx(0.4)

    @pytest.mark.parametrize("seed", range(5))
    def test_kappa_of_five_categories(self, seed):
        random = np.random.default_rng(seed)
        one = random.integers(1, 6, 40)
        other = (one + random.integers(-1, 2, 40)).clip(1, 5)
        assert weighted_kappa(one, other) == pytest.approx(slow_kappa(one, other))

    def test_kappa_without_anything_to_compare_is_none(self):
        assert weighted_kappa([], []) is None
        assert weighted_kappa([3, 3], [3, 3]) is None

    def test_signed_rank_of_darwins_maize(self):
        heights = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
        assert signed_rank(heights) == pytest.approx(0.041259765625)
        assert signed_rank([0, 0, 0]) == 1
        assert signed_rank([2.0]) == 1
        assert 0.1 < signed_rank([1, 1, 0, 1]) < 1

    def test_more_readings_of_the_same_patients_do_not_narrow_the_interval(self):
        values = np.random.default_rng(0).normal(0.5, 1, 12)
        found = []
        for readings in (1, 20):
            own = np.repeat(values, readings)
            patients = np.repeat(np.arange(12), readings)
            found.append(over_patients(patients, lambda k, own=own: float(own[k].mean())))
        assert found[0] == pytest.approx(found[1])
        low, high = found[0]
        assert high - low == pytest.approx(3.92 * values.std() / 12**0.5, rel=0.1)

    def test_a_share_of_one_reading_a_patient_is_clopper_and_pearsons(self):
        """8 of 10: 0.444 to 0.975, in many a table."""
        found = clustered_share(range(10), [True] * 8 + [False] * 2)
        assert found == pytest.approx((0.4439, 0.9748), abs=1e-4)

    def test_a_share_counts_patients_and_not_readings(self):
        wins = [True] * 8 + [False] * 2
        once = clustered_share(range(10), wins)
        often = clustered_share([p for p in range(10) for _ in range(50)],
                                [w for w in wins for _ in range(50)])  # fmt: skip
        assert often[0] == pytest.approx(once[0], abs=0.1)
        assert often[0] < once[0] < 0.8 < once[1] < often[1]
        assert clustered_share([1] * 9, [True] * 9) is None
        assert clustered_share([1, 2] * 9, [True] * 18) == pytest.approx((0.1581, 1.0), abs=1e-4)
        assert clustered_share([1, 2] * 9, [False] * 18)[0] == 0

    @pytest.mark.parametrize("spread", [0.0, 0.3])
    def test_a_share_of_alike_readings_is_covered(self, spread):
        """Twelve patients who lean to one side or the other, nobody on average."""
        random, patients = np.random.default_rng(0), np.repeat(np.arange(12), 9)
        clustered, naive = 0, 0
        for _ in range(400):
            leaning = np.clip(0.5 + random.normal(0, spread, 12), 0.02, 0.98)
            wins = random.random(108) < leaning.repeat(9)
            low, high = clustered_share(patients, wins)
            clustered += low <= 0.5 <= high
            low, high = wilson(int(wins.sum()), 108)
            naive += low <= 0.5 <= high
        assert clustered / 400 > 0.94
        assert (naive / 400 > 0.9) == (spread == 0)

    def test_same_answers_are_counted_where_both_answered(self):
        ratings = np.array([[1, 2, 3, np.nan], [1, 2, 4, 5], [np.nan, 2, 3, 5]])
        assert same_answers(ratings) == pytest.approx(6 / 8)
        assert same_answers(ratings[:1]) is None

    def test_four_patients_give_no_interval(self):
        assert over_patients([1, 2, 3, 4] * 9, lambda _: 1.0) is None


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{root}/enhanced"], "--source: must hold the series"),
            (["{root}/sources", "--source", "{root}/sources"], "or hold some, got none"),
            (["{root}", "--analyse"], "study.json: must be a file that the study command wrote"),
            (["{root}/enhanced", "--source", "{root}/sources", "--slice-axis", "2", "--cases", "1"],
             "--cases: must be 2"),
        ],
    )  # fmt: skip
    def test_mistakes_end_in_one_line_and_code_2(
        self, exams, tmp_path, arguments, message, monkeypatch, capsys
    ):
        filled = [argument.format(root=exams) for argument in arguments]
        command = ["reader_study", *filled, "--out", str(tmp_path / "study")]
        monkeypatch.setattr(sys, "argv", [*command, "--no-browser"])
        with pytest.raises(SystemExit) as ended:
            run(app)
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert message in error
        assert len(error.splitlines()) == 1

    def test_a_study_that_is_there_goes_on_as_it_was_made(self, study, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["reader_study", str(study), "--seed", "3"])
        with pytest.raises(SystemExit) as ended:
            run(app)
        assert ended.value.code == 2
        assert "must go on as it was made" in capsys.readouterr().err

    def test_analyse_prints_the_tables(self, study, monkeypatch, capsys):
        answer_all(study, lambda _reader, _case, _arms: "enhanced")
        monkeypatch.setattr(sys, "argv", ["reader_study", str(study), "--analyse"])
        with pytest.raises(SystemExit) as ended:
            run(app)
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        for text in ("Preference", "Agreement between readers", "results.md", "if independent",
                     "enhanced / bicubic", "76 to 100 %", "p over patients"):  # fmt: skip
            assert text in printed
