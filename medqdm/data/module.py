"""Module: training and validation batches for Lightning, resumable at any step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from medqdm.config import Task
from medqdm.data.samples import FixedSlices, LoadSliceD, Stage, TrainingSlices, WindowD
from medqdm.data.slices import (
    Patient,
    Slices,
    find_patients,
    load_slices,
    split_patients,
    spread,
)

ENDLESS = 10**9  # batches of the one epoch of a stage that is ended by a clock


class BatchNumbers(Sampler[list[int]]):
    """Sample numbers of this process's batches, from ``next_batch`` to the end of the epoch.

    Args:
        num_batches: batches of one epoch.
        batch_size: of one process.
        rank: of this process.
        world_size: number of processes; they take turns.
    """

    def __init__(self, num_batches: int, batch_size: int, rank: int, world_size: int) -> None:
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.next_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        end = (self.next_batch // self.num_batches + 1) * self.num_batches
        for batch in range(self.next_batch, end):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader whose place Lightning keeps in the checkpoint, so a resumed run misses no sample."""

    batch_sampler: BatchNumbers

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator over torch's own
        """Batches from the kept place on."""
        for batch in super().__iter__():
            self.batch_sampler.next_batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The place."""
        return {"next_batch": self.batch_sampler.next_batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a place."""
        self.batch_sampler.next_batch = state["next_batch"]


class SliceDataModule(pl.LightningDataModule):
    """Training and validation batches of one stage.

    Args:
        task: settings.
        data: folder of volumes, see ``find_patients``.
        stage: whose batch and crop size.
    """

    def __init__(self, task: Task, data: Path, stage: Stage) -> None:
        super().__init__()
        self.task = task
        self.data = data
        self.stage: Stage = stage
        settings = getattr(task.training, stage)
        self.batch_size: int = settings.batch_size
        self.num_batches: int = max(1, settings.steps * task.training.accumulate)
        if task.training.minutes is not None:
            self.num_batches = ENDLESS
        self.train_patients: list[Patient] = []
        self.validation_patients: list[Patient] = []

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  (Lightning's signature)
        """Find, split and read the patients, before workers are forked from this process."""
        if self.train_patients:
            return
        patients = find_patients(Path(self.data))
        self.train_patients, self.validation_patients = split_patients(patients, self.task.training)
        for patient in patients:
            load_slices(patient, self.task.slice_px)

    def train_dataloader(self) -> ResumableLoader:
        """Batches without end for one process, each sample a function of seed and number."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        numbers = BatchNumbers(self.num_batches, self.batch_size, rank, world_size)
        workers = self.task.training.num_workers
        return ResumableLoader(
            TrainingSlices(self.task, self.stage, self.train_patients),
            batch_sampler=numbers,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The fixed validation slices, whole ones, made once and kept."""
        count = self.task.training.validation_slices
        slices = spread(self.validation_patients, self.task.slice_px, count)
        fixed = FixedSlices(self.task, slices)
        samples: Any = [fixed[k] for k in range(len(fixed))]
        return DataLoader(samples, batch_size=min(self.batch_size, 4))

    def sample_hr(self, num: int) -> Iterator[Float[Tensor, "1 h w"]]:
        """Whole HR slices in [-1, 1], spread evenly over the training patients.

        Args:
            num: how many at the most.
        """
        self.setup()
        load = Compose([LoadSliceD(self.task.slice_px), WindowD(["hr"], self.task.hu_window)])
        for patient, index in spread(self.train_patients, self.task.slice_px, num):
            yield load({"patient": patient, "slice": index})["hr"]

    def samples(self, num: int) -> Iterator[dict[str, Any]]:
        """The first training samples of the stage.

        Args:
            num: how many.
        """
        self.setup()
        samples = TrainingSlices(self.task, self.stage, self.train_patients)
        for number in range(num):
            yield samples[number]

    def record(self) -> dict[str, Any]:
        """What is trained on, for the weights file: numbers, no names.

        Returns:
            Patients and slices of both sides, and ``lr_spacing_mm``, the smallest and the largest
            LR pixel spacing of training samples.
        """
        self.setup()

        def slices(patients: list[Patient]) -> list[Slices]:
            return [load_slices(patient, self.task.slice_px) for patient in patients]

        train, validation = slices(self.train_patients), slices(self.validation_patients)
        low = min(float(found.spacing_mm.min()) for found in train)
        high = max(float(found.spacing_mm.max()) for found in train)
        if self.task.training.reduce_probability > 0:
            high *= self.task.training.largest_reduction
        return {
            "train_patients": len(train),
            "train_slices": sum(len(found.hu) for found in train),
            "validation_patients": len(validation),
            "validation_slices": sum(len(found.hu) for found in validation),
            "lr_spacing_mm": [round(end * self.task.upscale, 4) for end in (low, high)],
        }
