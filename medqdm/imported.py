"""Imported: published QDM and KL-VAE weights as this package's, with the task that fits them.

Nothing is ever unpickled, apart from plain tensors of published ``.pth`` files.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medqdm.build import build_autoencoder, build_qdm, size_of
from medqdm.checkpoint import check_fit, read_tensors
from medqdm.config import Task, parse_task
from medqdm.errors import MedQDMError
from medqdm.models.published import QDMSizes, convert_autoencoder, convert_qdm
from medqdm.models.streams import SIZES

PUBLISHED_LATENT_SCALE = 0.1  # what published QDMs multiply latents with
PUBLISHED_NORM_GROUPS = 32
_NESTED = (  # where training scripts put their weights, averaged ones first
    "ema", "ema_state_dict", "model_ema", "params_ema", "state_dict_ema",
    "state_dict", "model_state_dict", "model", "params", "net",
)  # fmt: skip
_AVERAGED = "model_ema."
_PREFIXES = re.compile(r"^((module|_orig_mod|model|ema_model|first_stage_model)\.)+")


class Imported(NamedTuple):
    """Published weights under our names, and the task that fits them.

    Args:
        task: the task given, with the settings that the weights dictate.
        autoencoder: weights of the KL-VAE; None if no file was given.
        qdm: weights of the transformer; None if no file was given.
    """

    task: Task
    autoencoder: dict[str, Tensor] | None
    qdm: dict[str, Tensor] | None


def import_weights(*, qdm: Path | None, autoencoder: Path | None, task: Task) -> Imported:
    """Read published weights.

    Args:
        qdm: published QDM weights: ``.pth``, ``.pt``, ``.ckpt`` (plain tensors only),
            ``.safetensors`` or ``.npz``; averaged weights are taken where a file holds both.
        autoencoder: published KL-VAE weights under LDM's names, likewise.
        task: what the weights are for. Sizes are read off the weights, except for the number of
            heads: that of the table's row of this depth and width, else the task's.

    Raises:
        MedQDMError: a file cannot be read without running code, or holds other weights.
    """
    changes = task.model_dump()
    qdm_state = autoencoder_state = None
    if autoencoder is not None:
        where = autoencoder.name
        autoencoder_state, found = convert_autoencoder(_read_published(autoencoder), where=where)
        changes["autoencoder"] |= {**found._asdict(), "norm_groups": PUBLISHED_NORM_GROUPS}
    if qdm is not None:
        qdm_state, sizes = convert_qdm(_read_published(qdm), where=qdm.name)
        if autoencoder is None:
            changes["autoencoder"]["latent_channels"] = sizes.latent_channels
            changes["autoencoder"]["image_channels"] = sizes.condition_channels
        changes["transformer"] = _transformer(sizes, task, where=qdm.name)
        changes["autoencoder"]["latent_scale"] = (
            task.autoencoder.latent_scale or PUBLISHED_LATENT_SCALE
        )
        changes["diffusion"]["published_masking"] = True
        changes["quadtree"]["inclusive"] = True
        if sizes.latent_size is not None:
            compression = 2 ** (len(changes["autoencoder"]["channels"]) - 1)
            changes["slice_px"] = sizes.latent_size * compression
    made = parse_task(changes, where="import-weights")
    if autoencoder is not None and autoencoder_state is not None:
        check_fit(build_autoencoder, made, autoencoder_state, where=autoencoder.name)
    if qdm is not None and qdm_state is not None:
        check_fit(build_qdm, made, qdm_state, where=qdm.name)
    return Imported(made, autoencoder_state, qdm_state)


def _transformer(sizes: QDMSizes, task: Task, *, where: str) -> dict[str, Any]:
    """The transformer section for published weights."""
    for size in (*SIZES.values(), size_of(task)):
        if (size.depth, size.hidden_size) == (sizes.depth, sizes.hidden_size):
            return {"size": "custom", **size._asdict(), "prediction": "z_0"}
    raise MedQDMError(
        f"{where}: transformer must be one of {', '.join(SIZES)} or the task's, got depth "
        f"{sizes.depth} and hidden_size {sizes.hidden_size}; give a task with transformer.size "
        "custom, as weights do not tell the number of heads"
    )


def _read_published(path: Path) -> dict[str, Tensor]:
    """Tensors of a published file under their plain names."""
    if path.suffix == ".safetensors":
        return _plain(read_tensors(path)[0])
    if not path.is_file():
        raise MedQDMError(f"{path}: a weights file must exist, got none; check the path")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _plain({name: torch.from_numpy(arrays[name]) for name in arrays})
        with warnings.catch_warnings(action="ignore"):  # torch's, on files that it then refuses
            return _plain(torch.load(path, map_location="cpu", weights_only=True))
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        TypeError,
        ValueError,
    ):
        raise MedQDMError(
            f"{path.name}: must hold plain tensors that load without running code, got other "
            "objects or damage; save its state_dict alone as .safetensors"
        ) from None


def _plain(data: Any) -> dict[str, Tensor]:
    """Unpack nested dicts and wrappers' prefixes, averaged weights first."""
    while isinstance(data, Mapping):
        inner = [data[key] for key in _NESTED if isinstance(data.get(key), Mapping)]
        if not inner:
            break
        data = inner[0]
    if not isinstance(data, Mapping):
        raise TypeError("not a state dict")
    tensors = {name: v.float() for name, v in data.items() if isinstance(v, Tensor)}
    # LDM's averages stand beside the weights, their names without dots.
    averaged = {n.removeprefix(_AVERAGED): v for n, v in tensors.items() if n.startswith(_AVERAGED)}
    plain = {_PREFIXES.sub("", n): v for n, v in tensors.items() if not n.startswith(_AVERAGED)}
    return {name: averaged.get(name.replace(".", ""), value) for name, value in plain.items()}
