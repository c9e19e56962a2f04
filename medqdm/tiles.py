"""Tiles: those of many slices go through the networks together, as many as memory takes."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from medqdm.config import Precision
from medqdm.device import autocast
from medqdm.diffusion.sampler import Noise
from medqdm.engine import Engine
from medqdm.errors import MedQDMError
from medqdm.jobs import SliceJob, Tile


class TileBatches:
    """Runs the tiles of slices through an engine, batch by batch.

    Args:
        engine: on its device.
        device: where that is.
        batch_size: tiles that the networks get at once.

    Attributes:
        batch_size: the one in use: halved when memory runs out.
    """

    def __init__(self, engine: Engine, device: torch.device, *, batch_size: int) -> None:
        self._engine = engine
        self._device = device
        self.batch_size = batch_size

    def complete(self, jobs: Iterable[SliceJob], precision: Precision) -> Iterator[SliceJob]:
        """Enhance the tiles of all jobs in batches; the jobs, in order, when their last is done.

        Args:
            jobs: slices of one shape, with as many draws and as one ``mean``.
            precision: of the networks.

        Raises:
            MedQDMError: one tile, or a block of a slice, does not fit into memory.
        """
        tiles = (Tile(job, y, x) for job in jobs for y, x in job.corners)
        waiting: list[Tile] = []
        while waiting := waiting + list(islice(tiles, max(0, self.batch_size - len(waiting)))):
            group = waiting[: self.batch_size]
            began = time.monotonic()
            result = self._try(group, precision)
            if result is None:
                self._halve(group)
                continue
            waiting = waiting[len(group) :]
            maps, refined = result
            seconds = (time.monotonic() - began) / len(group)
            for k, tile in enumerate(group):
                tile.job.add(tile, maps[k], refined[k], seconds)
                if tile.job.is_complete:
                    self._decode_fused(tile.job, precision)
                    yield tile.job

    def _try(self, group: Sequence[Tile], precision: Precision) -> tuple[Tensor, Tensor] | None:
        """What ``SliceJob.add`` takes of each tile of a batch; None if memory ran out."""
        lr = torch.stack([tile.lr for tile in group])[:, None].to(self._device)
        steady = self._engine.task.diffusion.sampler.steady != "none"
        difficulty = (
            torch.stack([tile.difficulty for tile in group]).to(self._device) if steady else None
        )

        def noise_of(draw: int) -> Noise:
            return lambda k: torch.stack([tile.noise(k, draw) for tile in group]).to(self._device)

        noises = [noise_of(draw) for draw in range(group[0].job.num_draws)]
        try:
            with autocast(self._device, precision):
                z_lr = self._encode(group, lr)
                drawn = self._engine.draw(lr, z_lr, noises, difficulty=difficulty)
                if group[0].job.fuses_latents:
                    maps = torch.cat(drawn.latents, dim=1)
                else:

                    def white() -> Tensor:
                        return torch.stack([tile.white for tile in group])

                    mean = group[0].job.mean
                    maps = self._show(drawn.latents, lr, z_lr, drawn.refined, white, mean=mean)
                return maps.cpu(), drawn.refined.cpu()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        return None

    def _encode(self, group: Sequence[Tile], lr: Tensor) -> Tensor:
        """Latents of a batch's upsampled tiles, cut out of the whole slice's where these fuse."""
        encode = self._engine.encode
        if not group[0].job.fuses_latents:
            return encode(self._engine.upsample(lr))
        for tile in group:
            if tile.job.z_lr is None:
                whole = tile.job.lr[None, None].to(self._device)
                tile.job.z_lr = encode(self._engine.upsample(whole))[0]
        return torch.stack([tile.z_lr for tile in group])

    def _show(
        self,
        latents: Sequence[Tensor],
        lr: Tensor,
        z_lr: Tensor,
        refined: Tensor,
        white: Callable[[], Tensor],
        *,
        mean: bool,
    ) -> Tensor:
        """(b, 1, h, w) the picture; with several draws (b, 2, h, w): their deviation too."""
        sr, deviation_hu = self._engine.show(
            latents,
            lr,
            z_lr=z_lr,
            refined=refined,
            white=lambda: white().to(self._device),
            mean=mean,
        )
        return sr if deviation_hu is None else torch.cat([sr, deviation_hu], dim=1)

    def _decode_fused(self, job: SliceJob, precision: Precision) -> None:
        """Decode a slice whose tiles were fused as latents."""
        if not job.fuses_latents:
            return
        began = time.monotonic()
        lr = job.lr[None, None].to(self._device)
        try:
            with autocast(self._device, precision):
                latents = [z[None].to(self._device) for z in job.latents]
                assert job.z_lr is not None  # its tiles were cut out of it
                z_lr, refined = job.z_lr[None], job.refined[None].to(self._device)
                maps = self._show(
                    latents, lr, z_lr, refined, lambda: job.white[None], mean=job.mean
                )[0].cpu()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            height, width = job.lr.shape
            raise MedQDMError(
                f"slice {job.z + 1}: a block of a slice of {width} x {height} pixels and "
                f"{job.num_draws} draw(s) must fit into the memory of {self._device}, got out of "
                "memory; close other programs, or take fewer draws"
            ) from None
        job.show(maps, time.monotonic() - began)

    def _halve(self, group: Sequence[Tile]) -> None:
        if len(group) == 1:
            raise self._too_large(group[0].job)
        self.batch_size = len(group) // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, job: SliceJob) -> MedQDMError:
        height, width = job.tile_shape
        return MedQDMError(
            f"slice {job.z + 1}: a tile of {width} x {height} pixels must fit into the memory of "
            f"{self._device}, got out of memory; close other programs, or take a smaller model"
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception of its own; torch's CPU allocator says it in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
