"""Layers: attention, MLP, step embedding, positions and adaLN-Zero blocks of both streams."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqdm.models.windows import WindowIndex

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
    hidden_size: int, rows: int, columns: int, trained: int, device: torch.device
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
        return torch.cat([x, y], dim=2).float().to(device)


def modulate(
    x: Float[Tensor, "n tokens hidden"],
    shift: Float[Tensor, "m 1 hidden"],
    scale: Float[Tensor, "m 1 hidden"],
) -> Float[Tensor, "n tokens hidden"]:
    """``x (1 + scale) + shift``; m is n, or 1 for all."""
    return x * (1 + scale) + shift


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

    def forward(self, step: Float[Tensor, "m hidden"]) -> tuple[Float[Tensor, "m 1 hidden"], ...]:
        """The vectors, each broadcast over the tokens of a sequence."""
        vectors: Tensor = self.linear(functional.silu(step))
        return vectors[:, None].chunk(self.num_outputs, dim=2)


def attend(
    q: Float[Tensor, "b tokens hidden"],
    k: Float[Tensor, "b context hidden"],
    v: Float[Tensor, "b context hidden"],
    num_heads: int,
) -> Float[Tensor, "b tokens hidden"]:
    """Multi-head attention of tokens to a context."""

    def heads(x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (num_heads, -1)).transpose(
            1, 2
        )  # (b, heads, tokens, channels)

    out = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention within a sequence.

    Args:
        hidden_size: channels, a multiple of num_heads.
        num_heads: heads.
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.num_heads = num_heads

    def forward(self, x: Float[Tensor, "n tokens hidden"]) -> Float[Tensor, "n tokens hidden"]:
        """Attend among the tokens of each sequence."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        out: Tensor = self.proj(attend(q, k, v, self.num_heads))
        return out


class CrossAttention(nn.Module):
    """Attention of sequences to the tokens of another stream.

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
        x: Float[Tensor, "n tokens hidden"],
        context: Float[Tensor, "b context hidden"],
        windows: WindowIndex,
    ) -> Float[Tensor, "n tokens hidden"]:
        """Attend to the context of the slice that each sequence belongs to.

        A token looks at the whole context, so the windows of a slice are laid end to end and the
        keys and values need no copy per window.

        Args:
            x: tokens of all active windows.
            context: tokens per slice.
            windows: which slice each window belongs to.
        """
        k, v = self.kv(context).chunk(2, dim=2)
        out = attend(windows.pack(self.q(x)), k, v, self.num_heads)
        projected: Tensor = self.proj(windows.unpack(out, tokens=x.shape[1]))
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
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attention = attention
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(hidden_size=hidden_size)
        self.modulation = Modulation(hidden_size=hidden_size, num_outputs=6)

    def forward(
        self,
        x: Float[Tensor, "n tokens hidden"],
        step: Float[Tensor, "m hidden"],
        *context: Tensor | WindowIndex,
    ) -> Float[Tensor, "n tokens hidden"]:
        """Transform sequences.

        Args:
            x: sequences.
            step: step embedding per sequence, or one for all (m = 1).
            context: what the attention takes beside the sequences.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(step)
        x = x + gate_a * self.attention(modulate(self.norm1(x), shift_a, scale_a), *context)
        out: Tensor = x + gate_m * self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        return out


class Head(nn.Module):
    """From tokens back to square patches; zero at first.

    Args:
        hidden_size: channels in.
        patch: side of a patch.
        channels: channels out.
    """

    def __init__(self, *, hidden_size: int, patch: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch * patch * channels)
        self.modulation = Modulation(hidden_size=hidden_size, num_outputs=2)
        self.patch = patch

    def forward(
        self, x: Float[Tensor, "n tokens hidden"], step: Float[Tensor, "m hidden"], columns: int
    ) -> Float[Tensor, "n channels height width"]:
        """Unfold tokens.

        Args:
            x: tokens, row by row.
            step: step embedding per sequence, or one for all (m = 1).
            columns: tokens in a row.
        """
        shift, scale = self.modulation(step)
        x = self.linear(modulate(self.norm(x), shift, scale))
        x = torch.unflatten(x, 2, (self.patch, self.patch, -1))
        x = torch.unflatten(x, 1, (-1, columns))  # (n, rows, columns, p, p, c)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


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
