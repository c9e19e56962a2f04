import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medqdm.build import build_autoencoder, build_qdm
from medqdm.checkpoint import load, save
from medqdm.config import Task, load_task
from medqdm.errors import MedQDMError


@pytest.fixture(scope="module")
def task():
    return load_task("tiny", ["window.center_hu=40"])


@pytest.fixture(scope="module")
def states(task):
    torch.manual_seed(0)
    qdm = build_qdm(task)
    for parameter in qdm.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return build_autoencoder(task).state_dict(), qdm.state_dict()


@pytest.fixture
def saved(tmp_path, task, states):
    path = tmp_path / "new" / "weights.safetensors"
    save(
        path,
        task=task,
        autoencoder_state=states[0],
        qdm_state=states[1],
        record={"steps": 3, "loss": [0.5, 0.25]},
        dtype="float32",
    )
    return path


def rewrite(path: Path, *, tensors=None, metadata=None) -> None:
    """Change what lies in a weights file."""

    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    save_file({**load_file(path), **(tensors or {})}, path, metadata={**old, **(metadata or {})})


def test_round_trip(saved, task, states):
    checkpoint = load(saved)
    assert checkpoint.task == task
    assert checkpoint.record == {"steps": 3, "loss": [0.5, 0.25]}
    assert len(checkpoint.sha256) == 64
    for network, state in zip((checkpoint.autoencoder, checkpoint.qdm), states, strict=True):
        assert not network.training
        assert all(p.requires_grad for p in network.parameters())
        assert network.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[n]) for n, value in network.state_dict().items())


def test_loaded_networks_compute_the_same(saved, task, states):
    original = build_qdm(task)
    original.load_state_dict(states[1])
    z_t = torch.randn(1, 3, 16, 16)
    arguments = (z_t, torch.tensor([7]), torch.rand(1, 1, 16, 16), None)
    with torch.inference_mode():
        assert torch.equal(load(saved).qdm(*arguments), original(*arguments))


def test_stage_one_has_no_qdm(tmp_path, task, states):
    path = tmp_path / "vae.safetensors"
    save(path, task=task, autoencoder_state=states[0], qdm_state=None, record={}, dtype="float16")
    assert load(path).qdm is None


def test_float16_halves_the_file_and_loads_as_float32(tmp_path, saved, task, states):
    path = tmp_path / "half.safetensors"
    save(
        path,
        task=task,
        autoencoder_state=states[0],
        qdm_state=states[1],
        record={},
        dtype="float16",
    )
    weights = load(path).qdm.state_dict()
    assert path.stat().st_size < 0.6 * saved.stat().st_size
    assert all(value.dtype == torch.float32 for value in weights.values())
    torch.testing.assert_close(weights, dict(states[1]), atol=1e-3, rtol=1e-3)


def test_save_replaces_whole_files_and_leaves_no_draft(saved, task, states):
    broken = {**states[0], "quant.bias": torch.full((6,), torch.nan)}
    before = saved.read_bytes()
    with pytest.raises(MedQDMError, match=r"finite, got NaN or infinity in quant\.bias"):
        save(
            saved,
            task=task,
            autoencoder_state=broken,
            qdm_state=None,
            record={},
            dtype="float32",
        )
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_links_of_others_at_a_hidden_name_are_not_followed(saved, task, states):
    """Neither at the name of this process, as there once was one, nor at that of today."""
    victim = saved.parent / "victim"
    victim.write_text("mine")
    (saved.parent / f".{saved.name}.{os.getpid()}").symlink_to(victim)
    options = {"task": task, "autoencoder_state": states[0], "qdm_state": None, "record": {}}
    save(saved, **options, dtype="float16")
    assert victim.read_text() == "mine"
    before = saved.read_bytes()
    (saved.parent / f".{saved.name}.partial").symlink_to(victim)
    with pytest.raises(MedQDMError, match="must be free, or a folder that medqdm left there"):
        save(saved, **options, dtype="float32")
    assert (saved.read_bytes(), victim.read_text()) == (before, "mine")


def test_failing_write_leaves_the_old_file(saved, task, states, monkeypatch):
    before, write = saved.read_bytes(), Path.write_bytes

    def fail(path, data):
        write(path, data[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save(
            saved,
            task=task,
            autoencoder_state=states[0],
            qdm_state=None,
            record={},
            dtype="float32",
        )
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_saved_file_is_readable_by_others(saved):
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


def test_too_large_for_float16_is_refused(tmp_path, task, states):
    large = {**states[0], "quant.bias": torch.full((6,), 1e6)}
    with pytest.raises(MedQDMError, match=r"finite.*quant\.bias.*store as float32"):
        save(
            tmp_path / "w.safetensors",
            task=task,
            autoencoder_state=large,
            qdm_state=None,
            record={},
            dtype="float16",
        )


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(MedQDMError, match=r"none\.safetensors: a weights file must exist"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps({"a": 1})])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(MedQDMError, match=r"^w\.safetensors: must be a safetensors file, got a"):
        load(path)


def test_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(MedQDMError, match="damaged"):
        load(saved)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(MedQDMError, match=r"must be weights written by medqdm.*import-weights"):
        load(path)


def test_other_format_version_is_refused(saved):
    rewrite(saved, metadata={"medqdm_format": "99"})
    with pytest.raises(MedQDMError, match="format must be 1, got 99"):
        load(saved)


@pytest.mark.parametrize("key", ["task", "record"])
@pytest.mark.parametrize("text", ["{", "5"])
def test_damaged_metadata_is_refused(saved, key, text):
    rewrite(saved, metadata={key: text})
    with pytest.raises(MedQDMError, match="damaged"):
        load(saved)


def test_task_with_unknown_settings_is_refused(saved, task):
    settings = json.loads(task.model_dump_json()) | {"upscael": 4}
    rewrite(saved, metadata={"task": json.dumps(settings)})
    with pytest.raises(MedQDMError, match=r"weights\.safetensors: upscael must be a known setting"):
        load(saved)


def test_weights_of_another_size_are_refused(saved, task):
    other = task.model_dump()
    other["transformer"]["hidden_size"] = 64
    rewrite(saved, metadata={"task": Task.model_validate(other).model_dump_json()})
    with pytest.raises(MedQDMError, match=r"qdm: weights must fit their task, got \(.*instead of"):
        load(saved)


def test_surplus_weights_are_refused(saved):
    rewrite(saved, tensors={"autoencoder.more": torch.zeros(2)})
    with pytest.raises(MedQDMError, match=r"got \(2,\) for more instead of none"):
        load(saved)


def test_nan_weights_are_refused(saved):
    bad = torch.zeros(6)
    bad[1] = torch.nan
    rewrite(saved, tensors={"autoencoder.quant.bias": bad})
    with pytest.raises(MedQDMError, match=r"autoencoder: weights must be finite, got NaN"):
        load(saved)
