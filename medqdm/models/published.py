"""Published: state dicts of published QDM and KL-VAE weights under this package's names."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from medqdm.errors import MedQDMError
from medqdm.models.layers import position_table
from medqdm.models.windows import UPSTREAM_PATCH

State = dict[str, Tensor]
Names = Iterator[tuple[str, list[str]]]  # ours, and the published ones that it joins

_QDM_NAMES = [
    (r"x_embedder\.proj\.", "embed."),
    (r"x_embedder\.norm\.", "norm."),
    (r"t_embedder\.mlp\.0\.", "step.fc1."),
    (r"t_embedder\.mlp\.2\.", "step.fc2."),
    (r"final_layer\.", "head."),
    (r"(downstream\.blocks\.\d+\.)(attn|mlp|adaLN_modulation)1\.", r"\1local.\2."),
    (r"(downstream\.blocks\.\d+\.)(attn|mlp|adaLN_modulation)2\.", r"\1cross.\2."),
    (r"adaLN_modulation\.1\.", "modulation.linear."),
    (r"attn\.", "attention."),
]


class QDMSizes(NamedTuple):
    """What the shapes of published QDM weights tell; the number of heads is not among it.

    Args:
        depth: blocks per stream.
        hidden_size: channels of a token.
        latent_channels: channels of a latent.
        condition_channels: channels of the LR image.
        latent_size: side of the trained latent; None if the position tables were left out.
    """

    depth: int
    hidden_size: int
    latent_channels: int
    condition_channels: int
    latent_size: int | None


class AutoencoderSizes(NamedTuple):
    """What the shapes of published KL-VAE weights tell.

    Args:
        image_channels: channels of an image.
        latent_channels: channels of a latent.
        channels: channels per resolution.
        num_res_blocks: residual blocks per resolution of the encoder.
        mid_attention: attention in the middle.
    """

    image_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    num_res_blocks: int
    mid_attention: bool


def convert_qdm(published: Mapping[str, Tensor], *, where: str) -> tuple[State, QDMSizes]:
    """Rename published QDM weights; their position tables are checked and left out.

    Args:
        published: the weights; what belongs to neither stream is left out.
        where: what messages call them.

    Raises:
        MedQDMError: weights are missing, or positions are not the fixed sin-cos ones.
    """
    state = {}
    for name, value in published.items():
        if name.startswith(("upstream.", "downstream.")) and not name.endswith("pos_embed"):
            renamed = name
            for pattern, replacement in _QDM_NAMES:
                renamed = re.sub(pattern, replacement, renamed)
            state[renamed] = value
    _require(
        published, ["upstream.x_embedder.proj.weight", "upstream.final_layer.linear.bias"], where
    )
    hidden_size, in_channels = state["upstream.embed.weight"].shape[:2]
    latent_channels = len(state["upstream.head.linear.bias"]) // UPSTREAM_PATCH**2
    sizes = QDMSizes(
        depth=_count(state, r"upstream\.blocks\.(\d+)\."),
        hidden_size=hidden_size,
        latent_channels=latent_channels,
        condition_channels=in_channels - latent_channels,
        latent_size=_trained_size(published, hidden_size, where),
    )
    return state, sizes


def convert_autoencoder(
    published: Mapping[str, Tensor], *, where: str
) -> tuple[State, AutoencoderSizes]:
    """Rename published KL-VAE weights (LDM's names).

    Args:
        published: the weights; what is no part of the VAE is left out.
        where: what messages call them.

    Raises:
        MedQDMError: weights are missing, or the VAE has parts that ours has not.
    """
    levels = _count(published, r"encoder\.down\.(\d+)\.")
    widths = [f"encoder.down.{level}.block.0.conv1.bias" for level in range(levels)]
    _require(published, ["encoder.conv_in.weight", "quant_conv.bias", *widths], where)
    sizes = AutoencoderSizes(
        image_channels=published["encoder.conv_in.weight"].shape[1],
        latent_channels=len(published["quant_conv.bias"]) // 2,
        channels=tuple(len(published[name]) for name in widths),
        num_res_blocks=_count(published, r"encoder\.down\.0\.block\.(\d+)\."),
        mid_attention="encoder.mid.attn_1.q.weight" in published,
    )
    names = dict(_autoencoder_names(published, sizes))
    used = {name for joined in names.values() for name in joined}
    _require(published, sorted(used), where)
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    unused = sorted(n for n in published if n.startswith(parts) and n not in used)
    if unused:
        raise MedQDMError(
            f"{where}: must be a KL-VAE with attention in the middle only and equally many blocks "
            f"per resolution, got {unused[0]} too; such weights have no place in this network"
        )
    return {
        ours: torch.cat([published[n] for n in joined]) for ours, joined in names.items()
    }, sizes


def _autoencoder_names(published: Mapping[str, Tensor], sizes: AutoencoderSizes) -> Names:
    for ours, theirs in _modules(sizes):
        for mine, names in _module_names(
            theirs, shortcut=f"{theirs}.nin_shortcut.bias" in published
        ):
            for kind in ("weight", "bias"):
                yield f"{ours}{mine}.{kind}", [f"{theirs}{name}.{kind}" for name in names]


def _modules(sizes: AutoencoderSizes) -> Iterator[tuple[str, str]]:
    """Pairs of our module and the published one; both stand in the order of computation."""
    last = len(sizes.channels) - 1
    middle = ["mid.block_1", *(["mid.attn_1"] if sizes.mid_attention else []), "mid.block_2"]
    encoder = ["conv_in"]
    decoder = ["conv_in", *middle]
    for level in range(last + 1):
        encoder += [f"down.{level}.block.{block}" for block in range(sizes.num_res_blocks)]
        encoder += [f"down.{level}.downsample.conv"] if level < last else []
    for level in range(last, -1, -1):
        decoder += [f"up.{level}.block.{block}" for block in range(sizes.num_res_blocks + 1)]
        decoder += [f"up.{level}.upsample.conv"] if level > 0 else []
    encoder += [*middle, "norm_out", "", "conv_out"]  # "" is the activation, without weights
    decoder += ["norm_out", "", "conv_out"]
    for side, names in (("encoder", encoder), ("decoder", decoder)):
        yield from ((f"{side}.{i}", f"{side}.{name}") for i, name in enumerate(names) if name)
    yield "quant", "quant_conv"
    yield "post_quant", "post_quant_conv"


def _module_names(theirs: str, *, shortcut: bool) -> Names:
    """Names within a module; MONAI wraps each convolution once more than published code."""
    leaf = theirs.rsplit(".", 1)[-1]
    if leaf == "attn_1":
        yield from ((".norm", [".norm"]), (".qkv", [".q", ".k", ".v"]), (".proj", [".proj_out"]))
    elif "block" in theirs:
        yield from ((f".norm{i}", [f".norm{i}"]) for i in (1, 2))
        yield from ((f".conv{i}.conv", [f".conv{i}"]) for i in (1, 2))
        if shortcut:
            yield ".nin_shortcut.conv", [".nin_shortcut"]
    elif "sample" in theirs:
        yield (".conv.conv" if "down" in theirs else ".postconv.conv"), [""]
    else:
        yield (".conv" if leaf in {"conv_in", "conv_out"} else ""), [""]


def _require(state: Mapping[str, Tensor], names: Iterable[str], where: str) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        raise MedQDMError(
            f"{where}: must hold the published weight {missing[0]}, got none; is it the right file?"
        )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern finds in a name."""
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _trained_size(published: Mapping[str, Tensor], hidden_size: int, where: str) -> int | None:
    table = published.get("upstream.x_embedder.pos_embed")
    if table is None:
        return None
    side = round(table.shape[-2] ** 0.5)
    ours = position_table(hidden_size, side, side, side, torch.device("cpu")).flatten(0, 1)
    if table.shape != (1, *ours.shape) or not torch.allclose(table[0].float(), ours, atol=1e-2):
        raise MedQDMError(
            f"{where}: positions must be the fixed sin-cos ones of a square grid, got others; "
            "such weights have no place in this network"
        )
    return side * UPSTREAM_PATCH
