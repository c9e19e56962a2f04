"""Layers: attention, MLP, step embedding, positions and adaLN-Zero blocks of both streams."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.windows import Rows

NUM_FREQUENCIES = 256  # width of the sinusoidal step code: half cosines, half sines
BASE = 10_000.0  # longest wavelength / 2 pi of step code and positions
MLP_RATIO = 4


def step_code(t: Int[Tensor, " n"]) -> Float[Tensor, "n 256"]:
    """Sinusoidal code of schedule indices: cosines first, then sines."""
    half = NUM_FREQUENCIES // 2
    rates = BASE ** (-torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@lru_cache(maxsize=16)
def position_table(
    hidden_size: int,
    rows: int,
    columns: int,
    trained: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "rows columns hidden"]:
    """Fixed sin-cos positions of a token grid: half of the channels for x, then half for y.

    Within each half sines come before cosines. A grid longer than the trained one along an axis
    is stretched onto it, so that no coordinate is new to the network; a shorter one keeps unit
    steps from 0, the coordinates of a corner of the trained grid.

    Args:
        hidden_size: channels, a multiple of 4.
        rows: tokens along y.
        columns: tokens along x.
        trained: side of the trained grid in tokens.
        device: where the table lies.
        dtype: of the table.
    """
    quarter = hidden_size // 4
    rates = BASE ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def code(count: int) -> Tensor:
        coordinates = torch.arange(count, dtype=torch.float64) * min(1.0, trained / count)
        angles = coordinates[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    # A table first asked for under inference_mode must stay usable in training.
    with torch.inference_mode(False), torch.device("cpu"):
        x = code(columns)[None].expand(rows, -1, -1)
        y = code(rows)[:, None].expand(-1, columns, -1)
        return torch.cat([x, y], dim=2).to(device, dtype)


def modulated_norm(
    x: Float[Tensor, "*tokens hidden"],
    shift: Float[Tensor, "*m hidden"],
    scale: Float[Tensor, "*m hidden"],
    eps: float = 1e-6,
) -> Float[Tensor, "*tokens hidden"]:
    """``norm(x) (1 + scale) + shift``: LayerNorm without weights of its own, then adaLN.

    Args:
        x: tokens.
        shift: one vector for all tokens, or what broadcasts to them.
        scale: likewise.
        eps: added to the variance.
    """
    hidden = (x.shape[-1],)
    if scale.numel() == x.shape[-1]:  # one step for all: the shift and scale of a plain LayerNorm
        weight, bias = 1 + scale.flatten(), shift.flatten()
        return functional.layer_norm(x, hidden, weight.to(x.dtype), bias.to(x.dtype), eps)
    return functional.layer_norm(x, hidden, eps=eps) * (1 + scale) + shift


class StepEmbedding(nn.Module):
    """The condition that every block sees: Linear-SiLU-Linear of the step code.

    Args:
        hidden_size: channels of the result.
    """

    def __init__(self, *, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(NUM_FREQUENCIES, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Int[Tensor, " n"]) -> Float[Tensor, "n hidden"]:
        """Embed schedule indices."""
        code = step_code(t).to(self.fc1.weight.dtype)
        embedded: Tensor = self.fc2(functional.silu(self.fc1(code)))
        return embedded


class Modulation(nn.Module):
    """SiLU-Linear from the step embedding to shifts, scales and gates; zero at first.

    Args:
        hidden_size: channels.
        num_outputs: vectors per condition.
    """

    def __init__(self, *, hidden_size: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, num_outputs * hidden_size)
        self.num_outputs = num_outputs

    def forward(self, step: Float[Tensor, "m hidden"]) -> Float[Tensor, "m vectors hidden"]:
        """The vectors per condition."""
        return torch.unflatten(self.linear(functional.silu(step)), 1, (self.num_outputs, -1))


def attend(
    q: Float[Tensor, "b tokens hidden"],
    k: Float[Tensor, "b context hidden"],
    v: Float[Tensor, "b context hidden"],
    num_heads: int,
    valid: Bool[Tensor, "b context"] | None = None,
) -> Float[Tensor, "b tokens hidden"]:
    """Multi-head attention of tokens to a context, or to those of it that are valid."""

    def heads(x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (num_heads, -1)).transpose(1, 2)  # (b, heads, tokens, c)

    mask = None if valid is None else valid[:, None, None].expand(-1, 1, q.shape[1], -1)
    out = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention among the tokens of a slice, or of each window.

    Args:
        hidden_size: channels, a multiple of num_heads.
        num_heads: heads.
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.num_heads = num_heads

    def forward(
        self, x: Float[Tensor, "*tokens hidden"], windows: Rows | None = None
    ) -> Float[Tensor, "*tokens hidden"]:
        """Attend.

        Args:
            x: (b, tokens, hidden) sequences; or with ``windows`` a list (count, hidden).
            windows: the list's layout, one row per window.
        """
        qkv = self.qkv(x)
        valid = None
        if windows is not None:
            qkv = windows.lay_out(qkv)
            valid = None if windows.is_full else windows.valid
        q, k, v = qkv.chunk(3, dim=2)
        out = attend(q, k, v, self.num_heads, valid)
        projected: Tensor = self.proj(out if windows is None else windows.take_up(out))
        return projected


class CrossAttention(nn.Module):
    """Attention of a list of tokens to the upstream's tokens of their own slice.

    Args:
        hidden_size: channels of both, a multiple of num_heads.
        num_heads: heads.
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.num_heads = num_heads

    def forward(
        self,
        x: Float[Tensor, "count hidden"],
        context: Float[Tensor, "b context hidden"],
        batch: Rows,
    ) -> Float[Tensor, "count hidden"]:
        """Attend; keys and values are made once per slice, not per window.

        Args:
            x: the list.
            context: the upstream's tokens per slice.
            batch: the list's layout, one row per slice.
        """
        k, v = self.kv(context).chunk(2, dim=2)
        out = attend(batch.lay_out(self.q(x)), k, v, self.num_heads)
        projected: Tensor = self.proj(batch.take_up(out))
        return projected


class MLP(nn.Module):
    """Linear-GELU-Linear.

    Args:
        hidden_size: channels in and out.
    """

    def __init__(self, *, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, MLP_RATIO * hidden_size)
        self.fc2 = nn.Linear(MLP_RATIO * hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "n tokens hidden"]) -> Float[Tensor, "n tokens hidden"]:
        """Apply to each token."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return out


class GatedBlock(nn.Module):
    """Attention, then an MLP, each after a modulated LayerNorm and behind a gate (adaLN-Zero).

    Args:
        attention: self- or cross-attention.
        hidden_size: channels.
    """

    def __init__(self, attention: nn.Module, *, hidden_size: int) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = MLP(hidden_size=hidden_size)
        self.modulation = Modulation(hidden_size=hidden_size, num_outputs=6)

    def forward(
        self,
        x: Float[Tensor, "*tokens hidden"],
        vectors: Float[Tensor, "*m 6 hidden"],
        *context: Tensor | Rows,
    ) -> Float[Tensor, "*tokens hidden"]:
        """Transform tokens.

        Args:
            x: (b, tokens, hidden), or a list (count, hidden).
            vectors: the modulation's, one set for all tokens or what broadcasts to them.
            context: what the attention takes beside the tokens.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors.unbind(dim=-2)
        x = torch.addcmul(x, gate_a, self.attention(modulated_norm(x, shift_a, scale_a), *context))
        return torch.addcmul(x, gate_m, self.mlp(modulated_norm(x, shift_m, scale_m)))


class Head(nn.Module):
    """From tokens back to the channels of square patches; zero at first.

    Args:
        hidden_size: channels in.
        patch: side of a patch.
        channels: channels out.
    """

    def __init__(self, *, hidden_size: int, patch: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch * patch * channels)
        self.modulation = Modulation(hidden_size=hidden_size, num_outputs=2)
        self.patch = patch

    def forward(
        self, x: Float[Tensor, "*tokens hidden"], vectors: Float[Tensor, "*m 2 hidden"]
    ) -> Float[Tensor, "*tokens patch"]:
        """Patches, channel by channel and row by row.

        Args:
            x: tokens.
            vectors: the modulation's, one set for all tokens or what broadcasts to them.
        """
        shift, scale = vectors.unbind(dim=-2)
        out = torch.unflatten(self.linear(modulated_norm(x, shift, scale)), -1, (self.patch**2, -1))
        return out.transpose(-1, -2).flatten(-2)  # stored pixel by pixel


def initialize(module: nn.Module) -> None:
    """DiT's start: Xavier weights, zero biases, and zeros wherever a branch or the output ends."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, StepEmbedding):
            nn.init.normal_(part.fc1.weight, std=0.02)
            nn.init.normal_(part.fc2.weight, std=0.02)
        elif isinstance(part, Modulation | Head):
            nn.init.zeros_(part.linear.weight)
