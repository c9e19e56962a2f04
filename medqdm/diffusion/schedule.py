"""Schedule: how far the residual is shifted, and how much noise there is, at each step."""

import torch
from jaxtyping import Float
from torch import Tensor

from medqdm.errors import MedQDMError


class Schedule:
    """The exponential schedule of residual-shift diffusion (arXiv:2307.12348, section 2.2).

    ``sqrt(eta_i) = s_1 (s_T / s_1)^(u_i)`` with ``u_i = (i / (T - 1))^power`` and
    ``s_1 = min(m / kappa, m)``; index i runs from 0 (almost clean) to T - 1.

    Args:
        num_steps: T, at least 2.
        kappa: noise strength, above 0.
        min_noise_level: m, above 0.
        max_sqrt_eta: s_T, the last sqrt(eta), in (0, 1).
        power: exponent of the spacing, above 0.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        kappa: float,
        min_noise_level: float,
        max_sqrt_eta: float,
        power: float,
    ) -> None:
        first = min(min_noise_level / kappa, min_noise_level)
        if not 0 < first < max_sqrt_eta < 1:
            raise MedQDMError(
                f"diffusion: sqrt(eta) must rise within (0, 1), got {first} to {max_sqrt_eta}; "
                "lower min_noise_level or raise max_sqrt_eta"
            )
        self.num_steps = num_steps
        self.kappa = kappa
        u = torch.linspace(0, 1, num_steps, dtype=torch.float64) ** power
        self.sqrt_eta: Float[Tensor, " steps"] = first * (max_sqrt_eta / first) ** u
        self.eta: Float[Tensor, " steps"] = self.sqrt_eta**2

    def subset(self, count: int | None) -> list[int]:
        """Indices to visit, from T - 1 down to 0, evenly spread and always with both ends.

        Args:
            count: how many, 1 to T; 1 visits T - 1 alone; None visits all.

        Raises:
            MedQDMError: count is out of range.

        >>> schedule = Schedule(
        ...     num_steps=15, kappa=2.0, min_noise_level=0.04, max_sqrt_eta=0.99, power=0.3)
        >>> schedule.subset(4)
        [14, 9, 5, 0]
        """
        last = self.num_steps - 1
        if count is None:
            return list(range(last, -1, -1))
        if not 1 <= count <= self.num_steps:
            raise MedQDMError(
                f"diffusion.sampling_steps: must be 1 to {self.num_steps}, got {count}; "
                "the model was trained on that many"
            )
        if count == 1:
            return [last]
        return [round(last * (1 - k / (count - 1))) for k in range(count)]
