"""Enhance: the pipeline from a volume to its super-resolved slices and files."""

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medqdm import checkpoint, io, metrics, picture
from medqdm.config import Precision, Task, override
from medqdm.engine import Engine, autocast
from medqdm.errors import MedQDMError
from medqdm.io.whole import whole_folder
from medqdm.tiling import Fusion, tile_starts
from medqdm.version import __version__
from medqdm.volume import Volume

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
TILES_PER_BATCH = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True, eq=False)
class EnhancedSlice:
    """One slice of the output.

    Args:
        z: index of the slice in the volume.
        hu: ``(y * upscale, x * upscale)`` float32 in HU.
        refined: ``(ceil(y / 2), ceil(x / 2))`` bool: cells of 2 x 2 input pixels in which detail
            was synthesised by the downstream.
        seconds: time it took.
    """

    z: int
    hu: NDArray[np.float32]
    refined: NDArray[np.bool_]
    seconds: float


def bundled_weights(name: str) -> Path:
    """Weights that come with medqdm, for a task by name.

    Raises:
        MedQDMError: none are bundled for it.
    """
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors")))
        raise MedQDMError(
            f"no weights for task '{name}': bundled are {known or 'none'}; give --weights FILE"
        )
    return path


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        MedQDMError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in {"cpu", "cuda"} or (number and not number.isdigit()):
        raise MedQDMError(f"--device: must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MedQDMError(
            f"--device {name}: must be a CUDA device of this machine, "
            f"got {torch.cuda.device_count()} devices; use --device cpu"
        )
    return torch.device(name)


class Enhancer:
    """A loaded model, ready for any number of volumes.

    Args:
        weights: a medqdm weights file.
        device: see ``choose_device``.
        precision: ``auto`` is bf16 where the device multiplies it in hardware.
        seed: of the noise; the noise of a slice depends on it and on the slice's index alone.
        overrides: ``key=value`` settings of the task that the weights carry.

    Raises:
        MedQDMError: the weights or the device do not fit.
    """

    def __init__(
        self,
        weights: Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        loaded = checkpoint.load(weights)
        if loaded.qdm is None:
            raise MedQDMError(
                f"{weights}: must hold a whole model, got a KL-VAE alone; "
                "use the weights.safetensors of a finished run"
            )
        self.task: Task = override(loaded.task, overrides)
        self.record = loaded.record
        self.sha256 = loaded.sha256
        self.device = choose_device(device)
        self.precision: Precision = precision
        self.seed = seed
        self.engine = Engine(self.task, loaded.autoencoder, loaded.qdm).to(self.device).eval()
        self.engine.autoencoder.to(memory_format=torch.channels_last)

    @property
    def trained_spacing_mm(self) -> tuple[float, float] | None:
        """Smallest and largest LR pixel spacing of the training data, if recorded."""
        spacing = self.record.get("diffusion", {}).get("lr_spacing_mm")
        return (float(spacing[0]), float(spacing[1])) if spacing else None

    def warnings(self, volume: Volume) -> list[str]:
        """What a user should know before trusting the result, one sentence each."""
        found = list(volume.source.warnings)
        if self.trained_spacing_mm is not None:
            low, high = self.trained_spacing_mm
            spacing = volume.spacing_mm
            if min(spacing) < 0.9 * low or max(spacing) > 1.1 * high:
                found.append(
                    f"pixel spacing {spacing[0]:.3f} x {spacing[1]:.3f} mm is outside the "
                    f"{low:.3f} to {high:.3f} mm this model was trained on: "
                    "expect less detail, and check the result with care"
                )
        return found

    def slices(self, volume: Volume) -> Iterator[EnhancedSlice]:
        """Enhance slice by slice, in order.

        Raises:
            MedQDMError: the network gave NaN even in float32.
        """
        for z in range(len(volume.hu)):
            yield self.enhance_slice(volume.hu[z], z)

    def enhance_slice(self, hu: NDArray[np.float32], z: int = 0) -> EnhancedSlice:
        """Enhance one slice.

        Values outside the window pass by the network:
        ``out = denormalize(sr) + upsample(hu - clip(hu))``.

        Args:
            hu: ``(y, x)`` in HU, any size.
            z: index of the slice, which its noise depends on.
        """
        began = time.monotonic()
        window = self.task.hu_window
        sr, refined = self._super_resolve(torch.from_numpy(window.normalize(hu)), z)
        outside = torch.from_numpy(hu - window.clip(hu))
        out = window.denormalize(sr)
        if outside.any():
            # bilinear: a bicubic would draw a dark ring around metal
            out += functional.interpolate(
                outside[None, None], size=out.shape, mode="bilinear", align_corners=False
            )[0, 0]
        return EnhancedSlice(z, out.numpy(), refined.numpy(), time.monotonic() - began)

    def _super_resolve(self, lr: Tensor, z: int) -> tuple[Tensor, Tensor]:
        """(y, x) in [-1, 1] -> (y * s, x * s) in [-1, 1] and the refined cells."""
        for precision in (self.precision, "fp32"):
            with autocast(self.device, precision):  # type: ignore[arg-type]
                sr, refined = self._fuse_tiles(lr, z)
            if torch.isfinite(sr).all():
                return sr, refined
        raise MedQDMError(
            f"slice {z + 1}: the network's output must be finite, got NaN in fp32 too; "
            "the weights do not suit this input"
        )

    def _fuse_tiles(self, lr: Tensor, z: int) -> tuple[Tensor, Tensor]:
        task = self.task
        height, width = lr.shape
        unit, tile = task.lr_multiple, task.tile_lr_px
        padded = _pad_to_multiple(lr, unit)
        tile_h, tile_w = min(tile, padded.shape[0]), min(tile, padded.shape[1])
        stride = tile - tile // 8 // 2 * 2  # 112 of 128, and even: whole cells
        corners = [
            (y, x)
            for y in tile_starts(padded.shape[0], tile_h, min(stride, tile_h))
            for x in tile_starts(padded.shape[1], tile_w, min(stride, tile_w))
        ]
        canvas = SliceNoise(self.seed, z, self._latent_shape(padded.shape))
        fusion = Fusion(padded.shape[0] * task.upscale, padded.shape[1] * task.upscale)
        refined = torch.zeros(padded.shape[0] // 2, padded.shape[1] // 2, dtype=torch.bool)
        batch = TILES_PER_BATCH[self.device.type]
        for start in range(0, len(corners), batch):
            group = corners[start : start + batch]
            tiles = torch.stack([padded[y : y + tile_h, x : x + tile_w] for y, x in group])
            result = self.engine.enhance(
                tiles[:, None].to(self.device),
                lambda k, group=group: self._tile_noise(canvas, k, group, (tile_h, tile_w)),
            )
            for (y, x), sr, cells in zip(group, result.sr, result.refined, strict=True):
                fusion.add(sr[0], y * task.upscale, x * task.upscale)
                area = (slice(y // 2, (y + tile_h) // 2), slice(x // 2, (x + tile_w) // 2))
                refined[area] |= cells.cpu()
        whole = fusion.result()[: height * task.upscale, : width * task.upscale]
        return whole, refined[: math.ceil(height / 2), : math.ceil(width / 2)]

    def _latent_shape(self, lr_shape: Sequence[int]) -> tuple[int, int, int]:
        section = self.task.autoencoder
        sides = [side * self.task.upscale // section.compression for side in lr_shape]
        return section.latent_channels, sides[0], sides[1]

    def _tile_noise(
        self,
        canvas: "SliceNoise",
        k: int,
        corners: Sequence[tuple[int, int]],
        size: tuple[int, int],
    ) -> Tensor:
        _, h, w = self._latent_shape(size)
        starts = [self._latent_shape(corner)[1:] for corner in corners]
        noise = canvas.draw(k)
        return torch.stack([noise[:, y : y + h, x : x + w] for y, x in starts]).to(self.device)

    def estimate_seconds(self, volume: Volume) -> float:
        """Rough time for a volume: its middle slice's middle tile, timed, times all tiles."""
        tile = self.task.tile_lr_px
        _, height, width = volume.shape
        y, x = max(0, (height - tile) // 2), max(0, (width - tile) // 2)
        hu = volume.hu[len(volume.hu) // 2, y : y + tile, x : x + tile]
        self.enhance_slice(hu)  # the first call also plans memory and kernels
        seconds = self.enhance_slice(hu).seconds
        stride = tile - tile // 8 // 2 * 2
        tiles = len(tile_starts(height, tile, stride)) * len(tile_starts(width, tile, stride))
        return seconds * tiles * len(volume.hu)


class SliceNoise:
    """Standard normal noise on the latent canvas of a whole slice.

    Tiles cut theirs out of it, so that overlapping tiles agree. Draw k of slice z depends on
    (seed, z, k) alone: not on tiles, batches, devices or what was enhanced before.

    Args:
        seed: of the run.
        z: index of the slice.
        shape: (c, h, w) of the canvas.
    """

    def __init__(self, seed: int, z: int, shape: tuple[int, int, int]) -> None:
        self._entropy = (seed, z)
        self._shape = shape
        self._draws: dict[int, Tensor] = {}

    def draw(self, k: int) -> Tensor:
        """Draw k, (c, h, w) float32 on the CPU."""
        if k not in self._draws:
            state = np.random.SeedSequence((*self._entropy, k)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
            self._draws[k] = torch.randn(self._shape, generator=generator)
        return self._draws[k]


def _pad_to_multiple(image: Tensor, unit: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of ``unit``."""
    height, width = image.shape
    padding = (0, -width % unit, 0, -height % unit)
    return functional.pad(image[None, None], padding, mode="replicate")[0, 0]


@dataclass
class Summary:
    """What a run did, in numbers; grows with each slice.

    ``mean_shift_hu`` and ``lr_consistency_hu`` compare the output, reduced by area to the input's
    grid, with the input.
    """

    num_slices: int = 0
    seconds: float = 0.0
    refined_cells: int = 0
    cells: int = 0
    shift_sum_hu: float = 0.0
    square_sum_hu: float = 0.0
    voxels: int = 0
    clipped: int = 0
    warnings: list[str] = field(default_factory=list)

    def add(self, done: EnhancedSlice, lr_hu: NDArray[np.float32]) -> None:
        """Count one more slice."""
        factor = done.hu.shape[1] // lr_hu.shape[1]
        difference = metrics.reduce_by_area(done.hu, factor).astype(np.float64) - lr_hu
        self.num_slices += 1
        self.seconds += done.seconds
        self.refined_cells += int(done.refined.sum())
        self.cells += done.refined.size
        self.shift_sum_hu += float(difference.sum())
        self.square_sum_hu += float((difference**2).sum())
        self.voxels += difference.size

    def numbers(self) -> dict[str, float | int]:
        """The summary's figures under the names of run.json."""
        return {
            "slices": self.num_slices,
            "seconds_per_slice": round(self.seconds / max(1, self.num_slices), 3),
            "share_refined": round(self.refined_cells / max(1, self.cells), 4),
            "mean_shift_hu": round(self.shift_sum_hu / max(1, self.voxels), 3),
            "lr_consistency_hu": round((self.square_sum_hu / max(1, self.voxels)) ** 0.5, 3),
            "clipped_voxels": self.clipped,
        }


Track = Callable[[Iterable[EnhancedSlice], int], Iterable[EnhancedSlice]]
FORMATS = {"dicom": "", "nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}


def enhance_volume(
    enhancer: Enhancer,
    volume: Volume,
    out: Path,
    *,
    file_format: str = "dicom",
    overwrite: bool = False,
    track: Track = lambda slices, _total: slices,
) -> Summary:
    """Enhance a volume and write it into a folder that appears whole or not at all.

    The folder holds the DICOM series (or ``enhanced.nii.gz``, ``.nrrd``, ``.mha``), ``run.json``
    (what was done, with what), ``comparison.png`` (the middle slice before and after) and
    ``refined.npz`` (``refined``: ``(z, rows, columns)`` bool cells of 2 x 2 input pixels).

    Args:
        enhancer: the loaded model.
        volume: the input; its files are never touched.
        out: the folder.
        file_format: one of ``FORMATS``.
        overwrite: replace a folder that has files in it, at the very end.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: the output folder is in use, or the format cannot hold this geometry.
    """
    if file_format not in FORMATS:
        raise MedQDMError(f"--format: must be one of {', '.join(FORMATS)}, got {file_format!r}")
    summary = Summary(warnings=enhancer.warnings(volume))
    middle = len(volume.hu) // 2
    kept: dict[str, EnhancedSlice] = {}
    refined: list[NDArray[np.bool_]] = []

    def pixels() -> Iterator[NDArray[np.float32]]:
        for done in track(enhancer.slices(volume), len(volume.hu)):
            summary.add(done, volume.hu[done.z])
            refined.append(done.refined)
            if done.z == middle:
                kept["middle"] = done
            yield done.hu

    def add_files(folder: Path) -> None:
        np.savez_compressed(folder / "refined.npz", refined=np.stack(refined))
        done = kept["middle"]
        figure = picture.compare(
            volume.hu[middle],
            done.hu,
            done.refined,
            enhancer.task.hu_window,
            title=f"slice {middle + 1} of {len(volume.hu)}, {enhancer.task.name}, "
            "not for diagnostic use",
        )
        picture.save(figure, folder / "comparison.png")
        run = run_record(enhancer, volume, summary, file_format)
        (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")

    if file_format == "dicom":

        def finish(folder: Path, report: io.WriteReport) -> None:
            summary.clipped = report.num_clipped
            add_files(folder)

        io.write_series(
            volume,
            pixels(),
            out,
            upscale=enhancer.task.upscale,
            description=describe(enhancer),
            software_version=__version__,
            weights_id=enhancer.sha256[:12],
            uid_entropy=[enhancer.sha256, __version__, enhancer.task.model_dump_json(),
                         str(enhancer.seed), enhancer.device.type, enhancer.precision],
            overwrite=overwrite,
            extra=finish,
        )  # fmt: skip
        return summary
    with whole_folder(out, overwrite=overwrite) as folder:
        whole = np.stack([np.rint(hu).clip(-32768, 32767).astype(np.int16) for hu in pixels()])
        enlarged = volume.with_pixels(whole)
        io.write(volume, enlarged, folder / f"enhanced{FORMATS[file_format]}")
        add_files(folder)
    return summary


def enhance_series(  # noqa: PLR0913  (all by keyword but two)
    series: str | Path,
    out: str | Path,
    *,
    task: str = "sr4",
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    file_format: str = "dicom",
    series_uid: str | None = None,
    slice_axis: int | None = None,
    settings: Sequence[str] = (),
    overwrite: bool = False,
    announce: Callable[[Enhancer, Volume], None] = lambda _enhancer, _volume: None,
    track: Track = lambda slices, _total: slices,
) -> Summary:
    """Read a series, enhance it, write it: what ``medqdm enhance`` does, in one call.

    Args:
        series: DICOM folder, or a NIfTI, NRRD or MetaImage file.
        out: folder to write, see ``enhance_volume``.
        task: whose bundled weights to take.
        weights: a weights file instead of the bundled ones.
        device: see ``choose_device``.
        seed: of the noise.
        file_format: one of ``FORMATS``.
        series_uid: SeriesInstanceUID, where the folder holds several series.
        slice_axis: array axis across slices, where a NIfTI, NRRD or MetaImage file does not tell.
        settings: ``key=value`` changes to the task that the weights carry.
        overwrite: replace an output folder that has files in it.
        announce: called once, with the loaded model and the volume, before the work begins.
        track: wraps the slices as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about input, weights, settings or output that the user can put right.
    """
    check_output(Path(series), Path(out), overwrite=overwrite)
    volume = io.read(series, series=series_uid, slice_axis=slice_axis)
    enhancer = Enhancer(
        Path(weights) if weights else bundled_weights(task),
        device=device,
        seed=seed,
        overrides=settings,
    )
    announce(enhancer, volume)
    return enhance_volume(
        enhancer, volume, Path(out), file_format=file_format, overwrite=overwrite, track=track
    )


def check_output(series: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, an output folder that must not be written.

    Raises:
        MedQDMError: it is the input, holds it or lies in it; or it is in use.
    """
    source, target = series.resolve(), out.resolve()
    if source.is_dir() and (source == target or source in target.parents):
        raise MedQDMError(
            f"{out}: the output must not lie in the input folder, got one that does; "
            "choose another folder"
        )
    if target in source.parents:
        raise MedQDMError(
            f"{out}: the output must not be a folder that holds the input, got one that does; "
            "choose another folder"
        )
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise MedQDMError(
            f"{out}: the output folder must be empty, got files in it; "
            "choose another one or add --overwrite"
        )


def describe(enhancer: Enhancer) -> str:
    """The DICOM DerivationDescription: method, version, weights and settings; no paths."""
    task = enhancer.task
    steps = task.diffusion.sampling_steps or task.diffusion.num_steps
    return (
        f"In-plane x{task.upscale} super-resolution by a quadtree diffusion model; detail is "
        f"synthetic. medqdm {__version__}, task {task.name}, weights sha256:{enhancer.sha256}, "
        f"seed {enhancer.seed}, steps {steps}, gamma {task.diffusion.gamma:g}, "
        f"s {task.quadtree.threshold:g} ({task.threshold_hu:g} HU), "
        f"{enhancer.device.type} {enhancer.precision}"
    )


def run_record(
    enhancer: Enhancer, volume: Volume, summary: Summary, file_format: str
) -> dict[str, Any]:
    """What ``run.json`` holds: versions, model, settings and figures; nothing of the patient."""
    return {
        "medqdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(enhancer.device),
        "precision": enhancer.precision,
        "seed": enhancer.seed,
        "weights_sha256": enhancer.sha256,
        "task": enhancer.task.model_dump(mode="json", exclude={"training"}),
        "threshold_hu": enhancer.task.threshold_hu,
        "input": {
            "kind": volume.source.kind,
            "shape_zyx": list(volume.shape),
            "spacing_yx_mm": list(volume.spacing_mm),
        },
        "output": {"format": file_format, "upscale": enhancer.task.upscale},
        "summary": summary.numbers(),
        "warnings": summary.warnings,
    }
