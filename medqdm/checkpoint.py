"""Checkpoint: one safetensors file = weights + the task that made them; nothing is unpickled."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from medqdm.build import Autoencoder, build_autoencoder, build_qdm, build_regions, build_spread
from medqdm.config import Task, override, parse_task
from medqdm.errors import MedQDMError
from medqdm.io.whole import whole_file
from medqdm.models.regions import RegionHeads
from medqdm.models.spread import Spread
from medqdm.models.transformer import QDM

WEIGHTS_FOLDER = Path(__file__).parent / "weights"  # of the weights that come with medqdm
DIGESTS = "SHA256SUMS"  # their digests, in that folder, as sha256sum writes them

FORMAT = "1"  # of the metadata and the names; a reader refuses any other
_FORMAT_KEY = "medqdm_format"
_DIGEST_KEY = "digest"  # older files have none
_KEYS = {_FORMAT_KEY, _DIGEST_KEY, "task", "record"}
_DTYPES = {torch.float16, torch.float32}
_NOT_OF_THE_WEIGHTS = {"packing", "latent_scale"}  # settings of networks that others may change

State = Mapping[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
Build = Callable[[Task], nn.Module]


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds, ready to run.

    Args:
        task: the task that the networks belong to.
        autoencoder: the KL-VAE, float32 on the CPU, in evaluation mode.
        qdm: the transformer, likewise; None after stage one.
        regions: the networks that tell what regions bring; None without ``medqdm train-gain``.
        spread: the networks that tell how far estimates are off; None without
            ``medqdm train-spread``.
        record: how it was trained: any JSON.
        sha256: digest of the file, for reports.
    """

    task: Task
    autoencoder: Autoencoder
    qdm: QDM | None
    regions: RegionHeads | None
    spread: Spread | None
    record: dict[str, Any]
    sha256: str

    def task_with(self, settings: Sequence[str]) -> Task:
        """The task with changes.

        Args:
            settings: ``key=value`` each.

        Raises:
            MedQDMError: a setting does not fit, or asks for a network that is not there.
        """
        task = override(self.task, settings)
        for section in ("autoencoder", "transformer"):
            mine, theirs = (getattr(t, section).model_dump() for t in (task, self.task))
            for key in mine.keys() - _NOT_OF_THE_WEIGHTS:
                if mine[key] != theirs[key]:
                    raise MedQDMError(
                        f"{section}.{key}: must be that of the weights, {theirs[key]}, got "
                        f"{mine[key]}; leave it out, or train with it"
                    )
        return task


class Stored(NamedTuple):
    """What a weights file holds, before its networks are built.

    Args:
        task: the task that the weights belong to.
        states: name of each network to its weights.
        record: how they were trained: any JSON.
        sha256: digest of the file, for reports.
    """

    task: Task
    states: dict[str, dict[str, Tensor]]
    record: dict[str, Any]
    sha256: str


def save(
    path: Path,
    *,
    task: Task,
    autoencoder_state: State,
    qdm_state: State | None,
    record: Mapping[str, Any],
    dtype: Literal["float16", "float32"],
    regions_state: State | None = None,
    spread_state: State | None = None,
) -> None:
    """Write a weights file; it appears whole or not at all.

    Args:
        path: where to; its folder is made, an existing file is replaced.
        task: the task that the weights belong to.
        autoencoder_state: weights of the KL-VAE.
        qdm_state: weights of the transformer; None after stage one.
        record: how it was trained: any JSON.
        dtype: how numbers are stored.
        regions_state: weights of the networks for regions, if there are any.
        spread_state: weights of the networks for the spread of draws, if there are any.

    Raises:
        MedQDMError: a weight is not finite or does not fit into the dtype.
    """
    networks: dict[str, tuple[Build, State]] = {
        "autoencoder": (build_autoencoder, autoencoder_state)
    }
    if qdm_state is not None:
        networks["qdm"] = build_qdm, qdm_state
    if regions_state is not None:
        networks["regions"] = build_regions, regions_state
    if spread_state is not None:
        networks["spread"] = build_spread, spread_state
    write_networks(path, networks, task=task, record=record, dtype=dtype)


def write_networks(
    path: Path,
    networks: Mapping[str, tuple[Build, State]],
    *,
    task: Task,
    record: Mapping[str, Any],
    dtype: Literal["float16", "float32"],
) -> None:
    """Write networks of any kind with their task; the file appears whole or not at all.

    Args:
        path: where to; its folder is made, an existing file is replaced.
        networks: name, without a dot, to what builds it from the task, and its weights.
        task: the task that the weights belong to.
        record: how they were trained: any JSON.
        dtype: how numbers are stored.

    Raises:
        MedQDMError: a weight is not finite or does not fit into the dtype.
    """
    tensors: dict[str, Tensor] = {}
    for network, (build, state) in networks.items():
        stored = {n: v.detach().to("cpu", getattr(torch, dtype)) for n, v in state.items()}
        check_fit(build, task, stored, where=f"{path.name}: {network}")
        # safetensors wants each tensor to own its memory
        tensors |= {
            f"{network}.{n}": v.clone(memory_format=torch.contiguous_format)
            for n, v in stored.items()
        }
    metadata = {
        _FORMAT_KEY: FORMAT,
        "task": task.model_dump_json(),
        "record": json.dumps(dict(record)),
    }
    metadata[_DIGEST_KEY] = _digest(tensors, metadata)
    with whole_file(path, overwrite=True) as draft:
        draft.write_bytes(to_bytes(tensors, metadata=metadata))  # save_file makes it 0600


def load(path: Path) -> Checkpoint:
    """Read a weights file and build its networks.

    Raises:
        MedQDMError: no such file, not a medqdm weights file, damaged, a rival's weights, or weights
            that do not fit their task or are not finite.
    """
    task, states, record, sha256 = read_networks(path)
    if task.rival is not None:
        raise MedQDMError(
            f"{path.name}: must be weights of a QDM, got a rival's ({task.rival.network}); "
            "python -m studies.baselines evaluate --against accepts them"
        )
    where = path.name
    autoencoder = build_from(
        build_autoencoder, task, states.get("autoencoder", {}), where=f"{where}: autoencoder"
    )
    qdm = None
    if "qdm" in states:
        qdm = build_from(build_qdm, task, states["qdm"], where=f"{where}: qdm")
    regions = None
    if "regions" in states:
        regions = build_from(build_regions, task, states["regions"], where=f"{where}: regions")
    spread = None
    if "spread" in states:
        spread = build_from(build_spread, task, states["spread"], where=f"{where}: spread")
    return Checkpoint(task, autoencoder, qdm, regions, spread, record, sha256)


def read_networks(path: Path) -> Stored:
    """Read a weights file of any kind.

    Weights that come with medqdm must match their digest in the table beside them, and what a file
    holds must match the digest that it was written with. Older files hold none.

    Raises:
        MedQDMError: no such file, not a medqdm weights file, damaged, or with numbers of another
            type than float16 or float32.
    """
    _require_file(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _check_bundled(path, sha256)
    tensors, metadata = read_tensors(path)
    version = metadata.get(_FORMAT_KEY)
    if version is None:
        raise MedQDMError(
            f"{path.name}: must be weights written by medqdm, got other weights; "
            "published ones go through medqdm import-weights"
        )
    if version != FORMAT:
        raise MedQDMError(
            f"{path.name}: format must be {FORMAT}, got {version}; "
            "use the medqdm version that wrote it"
        )
    _check_tensors(tensors, metadata, where=path.name)
    try:
        settings, record = json.loads(metadata["task"]), json.loads(metadata["record"])
        if not (isinstance(settings, dict) and isinstance(record, dict)):
            raise TypeError("not a mapping")
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _damaged(path.name) from None
    task = parse_task(settings, where=path.name)
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        network, _, rest = name.partition(".")
        states.setdefault(network, {})[rest] = value
    return Stored(task, states, record, sha256)


def _check_bundled(path: Path, sha256: str) -> None:
    """Refuse a file that came with medqdm and has changed since."""
    if path.parent.resolve() != WEIGHTS_FOLDER.resolve():
        return
    table = WEIGHTS_FOLDER / DIGESTS
    lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if not known or known.get(path.name, sha256) != sha256:  # others may lie there too
        raise MedQDMError(
            f"{path.name}: bundled weights must have the SHA-256 in {DIGESTS}, "
            f"{known.get(path.name, 'none')}, got {sha256}; the installed file is damaged: "
            "install medqdm again"
        )


def _check_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, where: str
) -> None:
    """Refuse tensors and metadata that are not as they were written."""
    dtypes = {value.dtype for value in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise MedQDMError(
            f"{where}: weights must all be float16 or all float32, got {found}; "
            "fetch or make the file anew"
        )
    digest = metadata.get(_DIGEST_KEY)
    if metadata.keys() - _KEYS or (digest is not None and digest != _digest(tensors, metadata)):
        raise MedQDMError(
            f"{where}: weights and settings must match the digest in the file, got others; "
            "the file is damaged or was changed: fetch or make it anew"
        )


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, and over the other metadata."""
    found = hashlib.sha256()
    for key in sorted(metadata.keys() - {_DIGEST_KEY}):
        found.update(json.dumps([key, metadata[key]]).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_fit(build: Build, task: Task, state: State, *, where: str) -> None:
    """Refuse weights that are not finite or do not fit the network of their task.

    Args:
        build: makes the network from the task.
        task: the task that the weights belong to.
        state: the weights.
        where: names them in messages.

    Raises:
        MedQDMError: they are not finite, or do not fit.
    """
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in build(task).state_dict().items()}
    got = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise MedQDMError(
                f"{where}: weights must fit their task, got {got.get(name, 'no')} for {name} "
                f"instead of {expected.get(name, 'none')}; is it the right file?"
            )
    for name, value in state.items():
        if not value.isfinite().all():
            raise MedQDMError(
                f"{where}: weights must be finite, got NaN or infinity in {name}; "
                "take another file, or store as float32"
            )


def build_from(
    build: Callable[[Task], Network], task: Task, state: dict[str, Tensor], *, where: str
) -> Network:
    """A network with weights from a file, float32 on the CPU, in evaluation mode.

    Args:
        build: makes it from the task.
        task: the task that the weights belong to.
        state: the weights.
        where: names them in messages.

    Raises:
        MedQDMError: weights that do not fit their task or are not finite.
    """
    check_fit(build, task, state, where=where)
    with torch.device("meta"):  # no time for a random start that is replaced at once
        network = build(task)
    # Copied out of the file: memory that is aligned otherwise rounds otherwise.
    owned = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
    network.load_state_dict(owned, assign=True)
    return network.eval()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        MedQDMError: no such file, or not a safetensors file.
    """
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        raise _damaged(path.name) from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise MedQDMError(f"{path}: a weights file must exist, got none; check the path")


def _damaged(where: str) -> MedQDMError:
    return MedQDMError(
        f"{where}: must be a safetensors file, got a damaged or another one; fetch or make it anew"
    )
