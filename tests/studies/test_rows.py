"""Rows: the ready-made settings, picking from them, and rows that a user spells out."""

from pathlib import Path

import pytest

from medqdm.config import load_task, override
from medqdm.errors import MedQDMError
from studies.samplers import default_rows, parse_rows


def names(*texts: str, num_steps: int = 15, students: tuple[Path, ...] = ()) -> list[str]:
    return [row.name for row in parse_rows(texts, num_steps, students)]


def test_the_default_holds_every_policy_at_both_gammas_and_the_reference_first() -> None:
    found = names("default", students=(Path("student.safetensors"),))
    assert found[0] == "ancestral-15"
    uniform = [f"uniform-{n}-g{g}" for n in (8, 5, 4, 2) for g in (0, 1)]
    others = [f"{name}-g{g}" for name in ("tss-8", "tss-5", "gain", "groups") for g in (0, 1)]
    students = ["student-1", "student-2", "student-4"]
    assert set(found) == {"ancestral-15", "enhance", "uniform-1", *uniform, *others, *students}
    assert len(found) == len(set(found))


@pytest.mark.parametrize("num_steps", [4, 15])
def test_every_ready_made_row_is_a_valid_task(num_steps: int) -> None:
    task = load_task("tiny", [f"diffusion.num_steps={num_steps}", "diffusion.sampling_steps=1"])
    for row in default_rows(num_steps):
        diffusion = override(task, row.settings).diffusion
        assert diffusion.sampling_steps is not None
        assert diffusion.sampling_steps <= num_steps
        if row.name != "enhance":  # which is what the weights carry
            assert row.family.startswith(diffusion.sampler.name)
            assert row.name == f"ancestral-{num_steps}" or diffusion.sampler.name in row.name


def test_rows_are_picked_by_name_family_or_kind_and_only_once() -> None:
    assert names("uniform-4-g0,gain") == ["ancestral-15", "uniform-4-g0", "gain-g1", "gain-g0"]
    assert names("tss g0") == ["ancestral-15", "tss-8-g0", "tss-5-g0"]
    assert names("gain-g1", "gain-g1, gain") == ["ancestral-15", "gain-g1", "gain-g0"]
    assert names("") == ["ancestral-15"]
    two = (Path("a"), Path("b"))
    assert names("student2", students=two)[1:] == ["student2-1", "student2-2", "student2-4"]


def test_a_row_of_ones_own_needs_no_code() -> None:
    text = "iscs 20: diffusion.gamma=1 diffusion.sampler.groups.steps=[[14,0],[3,0]] weights=w.st"
    row = parse_rows([text], 15)[-1]
    assert (row.name, row.family, row.weights) == ("iscs 20", "iscs 20", Path("w.st"))
    assert row.settings == ("diffusion.gamma=1", "diffusion.sampler.groups.steps=[[14,0],[3,0]]")
    groups = override(load_task("tiny"), row.settings).diffusion.sampler.groups
    assert groups.steps == ((14, 0), (3, 0))
    assert parse_rows(["plain:"], 15)[-1].settings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unifrm-4-g0", "names of ancestral-15, .* got 'unifrm-4-g0'; did you mean uniform-4-g0"),
        (": diffusion.gamma=1", "must be 'NAME: KEY=VALUE"),
        ("bicubic: diffusion.gamma=1", "must be 'NAME: KEY=VALUE"),
        ("mine: diffusion.gamma", "must be 'NAME: KEY=VALUE"),
        ("gain-g1: diffusion.gamma=1", "names must differ, got 'gain-g1'"),
    ],
)
def test_rows_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(MedQDMError, match=message):
        parse_rows(["gain-g1", text], 15)
