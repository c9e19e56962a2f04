import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medqdm.checkpoint import load, save
from medqdm.config import load_task
from medqdm.errors import MedQDMError
from medqdm.imported import import_weights

PARITY = Path(__file__).parent / "parity"
QDM_WEIGHTS = PARITY / "qdm_sr4_weights.npz"
VAE_WEIGHTS = PARITY / "kl_vae_weights.npz"


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
