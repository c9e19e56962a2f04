import json
import os
import pickle
import random
import shutil
import stat
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm
from medqdm.checkpoint import load, read_networks, save
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
    """Change what lies in a weights file, and leave its digest out, as older files do."""

    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    del old["digest"]
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
@pytest.mark.parametrize("text", ["{", "5", "[" * 100_000, "9" * 5000])
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


def test_older_files_have_no_digest_and_load(saved, task):
    rewrite(saved)
    assert load(saved).task == task


@pytest.fixture
def small(tmp_path, task):
    """A file small enough to change it everywhere: a linear map in the place of a network."""
    path = tmp_path / "small.safetensors"
    network = torch.nn.Linear(3, 2)
    checkpoint.write_networks(
        path, {"map": (lambda _task: torch.nn.Linear(3, 2), network.state_dict())},
        task=task, record={"words": "caf\u00e9"}, dtype="float16",
    )  # fmt: skip
    return path


def test_a_flipped_bit_is_found_wherever_it_is(small):
    written = small.read_bytes()
    task, states, record, _ = read_networks(small)
    drawn = random.Random(0)
    places = set(drawn.sample(range(8 * len(written)), 600)) | set(range(64))
    places |= set(range(8 * len(written) - 8 * 16, 8 * len(written)))  # all of the numbers
    for place in sorted(places):
        flipped = bytearray(written)
        flipped[place // 8] ^= 1 << place % 8
        small.write_bytes(flipped)
        with pytest.raises(MedQDMError, match=r"^small\.safetensors: [^\n]*$"):
            read_networks(small)
    small.write_bytes(written)
    again = read_networks(small)
    assert (again.task, again.record) == (task, record)
    torch.testing.assert_close(again.states, states, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"task": load_task("tiny", ["window.center_hu=41"]).model_dump_json()}},
        {"metadata": {"record": '{"steps": 4}'}},
        {"tensors": {"autoencoder.quant.bias": torch.full((6,), 1e-3)}},
        {"tensors": {"autoencoder.quant.bias": torch.zeros(2, 3)}},
    ],
)
def test_what_was_changed_after_writing_is_refused(saved, change):
    with safe_open(saved, framework="pt") as file:
        metadata = {**file.metadata(), **change.get("metadata", {})}
    save_file({**load_file(saved), **change.get("tensors", {})}, saved, metadata=metadata)
    with pytest.raises(MedQDMError, match="must match the digest in the file"):
        load(saved)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float64, torch.bfloat16, torch.complex64, torch.bool, torch.int64]
)
def test_other_types_of_numbers_are_refused_by_name(saved, dtype):
    tensors = load_file(saved)
    rewrite(saved, tensors={name: value.to(dtype) for name, value in tensors.items()})
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(MedQDMError, match=rf"all be float16 or all float32, got {name};"):
        load(saved)


def test_mixed_types_of_numbers_are_refused(saved):
    rewrite(saved, tensors={"autoencoder.quant.bias": torch.zeros(6, dtype=torch.float16)})
    with pytest.raises(MedQDMError, match="got float16, float32;"):
        load(saved)


@pytest.mark.parametrize(
    ("shape", "end"),
    [([2**40], 4), ([2**31, 2**31, 2**31], 4), ([2**62], 2**64 - 1), ([1], 2**60), ([2**40, 0], 0)],
)
def test_a_header_that_claims_too_much_allocates_nothing(tmp_path, task, shape, end):
    metadata = {"medqdm_format": "1", "task": task.model_dump_json(), "record": "{}"}
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    header = json.dumps({"__metadata__": metadata, "autoencoder.quant.bias": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 if end else 0))
    tracemalloc.start()
    with pytest.raises(MedQDMError, match=r"^w\.safetensors: "):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    path.write_bytes(struct.pack("<Q", 2**60) + header)
    with pytest.raises(MedQDMError, match="damaged"):
        load(path)


def test_bundled_weights_must_be_those_that_were_installed(tmp_path, saved, monkeypatch):
    names = sorted(path.name for path in checkpoint.WEIGHTS_FOLDER.glob("*.safetensors"))
    table = (checkpoint.WEIGHTS_FOLDER / checkpoint.DIGESTS).read_text().splitlines()
    assert [line.split("  ")[1] for line in table] == names  # as sha256sum writes it
    folder = tmp_path / "installed"
    shutil.copytree(checkpoint.WEIGHTS_FOLDER, folder)
    monkeypatch.setattr(checkpoint, "WEIGHTS_FOLDER", folder)
    for name in names:
        path = folder / name
        assert read_networks(path).task.upscale == int(name[2])
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)
        with pytest.raises(MedQDMError, match=rf"^{name}: .*is damaged: install medqdm again$"):
            read_networks(path)
    shutil.copy(saved, folder / "mine.safetensors")
    assert load(folder / "mine.safetensors").qdm is not None
    (folder / checkpoint.DIGESTS).unlink()
    with pytest.raises(MedQDMError, match="install medqdm again"):
        read_networks(folder / names[0])
