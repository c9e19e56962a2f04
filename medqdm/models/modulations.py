"""Modulations: what all networks of a QDM are told of the steps, computed once for many calls."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medqdm.models.windows import UPSTREAM_PATCH, WindowIndex


class Modulations(NamedTuple):
    """What the networks are told of some steps, adaLN vectors first: they depend on nothing else.

    Args:
        upstream: per block (m, 6, hidden).
        upstream_head: (m, 2, hidden).
        downstream: per block two of (m, 6, hidden), of its local half and its cross half.
        downstream_head: (m, 2, hidden).
        upstream_rows: which of the m steps each upstream token stands at; None: the m steps are
            one per slice, or one for all.
        downstream_rows: likewise for each token that exists downstream.
        corrector: per block of the corrector (m, 2, channels); None without one.
        corrector_rows: likewise for each latent.
    """

    upstream: tuple[Float[Tensor, "m 6 hidden"], ...]
    upstream_head: Float[Tensor, "m 2 hidden"]
    downstream: tuple[tuple[Float[Tensor, "m 6 hidden"], Float[Tensor, "m 6 hidden"]], ...]
    downstream_head: Float[Tensor, "m 2 hidden"]
    upstream_rows: Int[Tensor, "b tokens"] | None = None
    downstream_rows: Int[Tensor, " count"] | None = None
    corrector: tuple[Float[Tensor, "m 2 channels"], ...] | None = None
    corrector_rows: Int[Tensor, "b h w"] | None = None

    def at(self, k: int) -> "Modulations":
        """The vectors of the k-th step alone, for all slices of a batch."""
        part = slice(k, k + 1)
        return Modulations(
            tuple(v[part] for v in self.upstream),
            self.upstream_head[part],
            tuple((local[part], cross[part]) for local, cross in self.downstream),
            self.downstream_head[part],
            corrector=None if self.corrector is None else tuple(v[part] for v in self.corrector),
        )

    def to(self, dtype: torch.dtype) -> "Modulations":
        """The vectors in another dtype."""
        return self._replace(
            upstream=tuple(v.to(dtype) for v in self.upstream),
            upstream_head=self.upstream_head.to(dtype),
            downstream=tuple((v.to(dtype), w.to(dtype)) for v, w in self.downstream),
            downstream_head=self.downstream_head.to(dtype),
            corrector=None
            if self.corrector is None
            else tuple(v.to(dtype) for v in self.corrector),
        )

    def at_map(self, rows: Int[Tensor, "b 1 h w"], index: WindowIndex) -> "Modulations":
        """The vectors of a step per token, for regions that stand at different steps.

        Args:
            rows: which of the m steps each latent stands at; constant in patches of 8 x 8.
            index: the tokens that exist downstream.
        """
        return self._replace(
            upstream_rows=rows[:, 0, ::UPSTREAM_PATCH, ::UPSTREAM_PATCH].flatten(1),
            downstream_rows=index.gather(rows)[:, 0],
            corrector_rows=rows[:, 0],
        )
