import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medqdm.checkpoint import build_autoencoder, build_qdm, import_weights, load, save
from medqdm.config import Task, load_task
from medqdm.errors import MedQDMError

PARITY = Path(__file__).parent / "parity"
QDM_WEIGHTS = PARITY / "qdm_sr4_weights.npz"
VAE_WEIGHTS = PARITY / "kl_vae_weights.npz"


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


# --- published weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_task():
    return load_task("tiny", ["transformer.hidden_size=48", "transformer.num_heads=4"])


@pytest.fixture(scope="module")
def published():
    with np.load(QDM_WEIGHTS) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def expected(published_task):
    return import_weights(qdm=QDM_WEIGHTS, autoencoder=None, task=published_task).qdm


def assert_imports(path, task, expected):
    got = import_weights(qdm=path, autoencoder=None, task=task).qdm
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_both_networks_together_make_a_weights_file(tmp_path, published_task):
    imported = import_weights(qdm=QDM_WEIGHTS, autoencoder=VAE_WEIGHTS, task=published_task)
    path = tmp_path / "imported.safetensors"
    save(
        path,
        task=imported.task,
        autoencoder_state=imported.autoencoder,
        qdm_state=imported.qdm,
        record={"source": "published"},
        dtype="float32",
    )
    task = load(path).task
    assert task == imported.task
    assert task.autoencoder.channels == (32, 64, 64)
    assert task.autoencoder.norm_groups == 32
    assert task.slice_px == 128


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "iters": 7},
        lambda state: {"model": {f"module.{name}": v for name, v in state.items()}},
        lambda state: {f"module._orig_mod.{name}": v for name, v in state.items()},
        lambda state: {
            "state_dict": {name: torch.zeros_like(v) for name, v in state.items()},
            "ema": {"state_dict": state},
        },
        lambda state: {
            "state_dict": {
                **{name: torch.zeros_like(v) for name, v in state.items()},
                **{f"model_ema.{name.replace('.', '')}": v for name, v in state.items()},
                "model_ema.decay": torch.tensor(0.999),
            }
        },
    ],
    ids=["plain", "state_dict", "module", "compiled", "ema", "ldm-ema"],
)
def test_wrappings_of_training_scripts(tmp_path, published, published_task, expected, wrap):
    path = tmp_path / "model.pth"
    torch.save(wrap(published), path)
    assert_imports(path, published_task, expected)


def test_published_safetensors(tmp_path, published, published_task, expected):
    path = tmp_path / "model.safetensors"
    save_file(published, path)
    assert_imports(path, published_task, expected)


def test_half_precision_comes_as_float32(tmp_path, published, published_task):
    path = tmp_path / "model.pt"
    torch.save({name: value.half() for name, value in published.items()}, path)
    state = import_weights(qdm=path, autoencoder=None, task=published_task).qdm
    assert {value.dtype for value in state.values()} == {torch.float32}


class Code:
    """An object that runs something when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("touched-by-unpickling"),)


def test_code_in_a_pth_is_refused_and_does_not_run(tmp_path, published_task, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callbacks": Code()}, "model.pth")
    with pytest.raises(MedQDMError, match=r"^model\.pth: must hold plain tensors.*without running"):
        import_weights(qdm=Path("model.pth"), autoencoder=None, task=published_task)
    assert not Path("touched-by-unpickling").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2])])
def test_files_that_hold_no_weights_are_refused(tmp_path, published_task, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MedQDMError, match=rf"^{name}: must hold plain tensors"):
        import_weights(qdm=path, autoencoder=None, task=published_task)


def test_missing_published_file_is_refused(tmp_path, published_task):
    with pytest.raises(MedQDMError, match=r"none\.pth: a weights file must exist"):
        import_weights(qdm=tmp_path / "none.pth", autoencoder=None, task=published_task)


def test_files_of_the_other_network_are_refused(published_task):
    with pytest.raises(
        MedQDMError, match=r"kl_vae_weights\.npz: must hold the published weight up"
    ):
        import_weights(qdm=VAE_WEIGHTS, autoencoder=None, task=published_task)
    with pytest.raises(
        MedQDMError, match=r"qdm_sr4_weights\.npz: must hold the published weight e"
    ):
        import_weights(qdm=None, autoencoder=QDM_WEIGHTS, task=published_task)


def change(tmp_path, source, **changes):
    with np.load(source) as arrays:
        state = {name: arrays[name] for name in arrays}
    path = tmp_path / "changed.npz"
    np.savez(path, **{n: v for n, v in (state | changes).items() if v is not None})
    return path


def test_sizes_without_a_number_of_heads_are_refused():
    with pytest.raises(MedQDMError, match=r"got depth 2 and hidden_size 48; give a task with"):
        import_weights(qdm=QDM_WEIGHTS, autoencoder=None, task=load_task("sr4"))


def test_missing_weight_is_named(tmp_path, published_task):
    name = "downstream.blocks.1.mlp2.fc1.bias"
    path = change(tmp_path, QDM_WEIGHTS, **{name: None})
    with pytest.raises(MedQDMError, match=r"got no for downstream\.blocks\.1\.cross\.mlp\.fc1\.b"):
        import_weights(qdm=path, autoencoder=None, task=published_task)


def test_learned_positions_are_refused(tmp_path, published_task):
    table = np.zeros((1, 16, 48), dtype=np.float32)
    path = change(tmp_path, QDM_WEIGHTS, **{"upstream.x_embedder.pos_embed": table})
    with pytest.raises(MedQDMError, match="positions must be the fixed sin-cos ones"):
        import_weights(qdm=path, autoencoder=None, task=published_task)


def test_without_positions_the_task_s_size_holds(tmp_path, published_task):
    path = change(tmp_path, QDM_WEIGHTS, **{"upstream.x_embedder.pos_embed": None})
    made = import_weights(qdm=path, autoencoder=None, task=published_task).task
    assert made.slice_px == published_task.slice_px


def test_nan_in_published_weights_is_refused(tmp_path, published_task):
    bad = np.full(48, np.nan, dtype=np.float32)
    path = change(tmp_path, QDM_WEIGHTS, **{"upstream.x_embedder.proj.bias": bad})
    with pytest.raises(MedQDMError, match=r"changed\.npz: weights must be finite"):
        import_weights(qdm=path, autoencoder=None, task=published_task)


def test_autoencoder_with_other_parts_is_refused(tmp_path, published_task):
    extra = {"encoder.down.2.attn.0.q.weight": np.zeros((64, 64, 1, 1), dtype=np.float32)}
    path = change(tmp_path, VAE_WEIGHTS, **extra)
    with pytest.raises(MedQDMError, match=r"middle only.*got encoder\.down\.2\.attn\.0\.q\.weight"):
        import_weights(qdm=None, autoencoder=path, task=published_task)


def test_networks_of_different_latents_are_refused(tmp_path, published_task):
    kernel = np.zeros((6, 2, 1, 1), dtype=np.float32)
    path = change(
        tmp_path,
        VAE_WEIGHTS,
        **{"quant_conv.bias": np.zeros(4, dtype=np.float32), "quant_conv.weight": kernel},
    )
    with pytest.raises(MedQDMError, match="weights must fit their task"):
        import_weights(qdm=QDM_WEIGHTS, autoencoder=path, task=published_task)


def test_autoencoder_alone_leaves_the_rest_of_the_task(published_task):
    made = import_weights(qdm=None, autoencoder=VAE_WEIGHTS, task=published_task).task
    assert made.model_copy(update={"autoencoder": published_task.autoencoder}) == published_task


def test_own_latent_scale_is_kept(published_task):
    scaled = published_task.model_copy(
        update={"autoencoder": published_task.autoencoder.model_copy(update={"latent_scale": 0.2})}
    )
    made = import_weights(qdm=QDM_WEIGHTS, autoencoder=VAE_WEIGHTS, task=scaled).task
    assert made.autoencoder.latent_scale == 0.2
