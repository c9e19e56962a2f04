"""NRRD and MetaImage through SimpleITK, whose world is LPS already."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  (its usual name)
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.axes import Lattice, Loaded, Place, place, planes
from medqdm.io.claims import Most, check_itk_claim, check_packed, data_files, most_of
from medqdm.io.itk_child import NO_MEMORY, NO_ROOM
from medqdm.io.whole import whole_file
from medqdm.volume import Source, Volume, check_same_edges

_SINGLE_FILE = (".nrrd", ".mha")
_OURS = "medqdm"  # the key of a field in files that medqdm wrote
_ABOUT_THE_FILE = ("ITK_", "NRRD_")  # keys that describe the lattice or the encoding read
_READ_BY, _LPS = "ITK_InputFilterName", "left-posterior-superior"  # what ITK turns RAS and LAS into
_READER = Path(__file__).with_name("itk_child.py")
_SECONDS, _BYTES_A_SECOND = 60.0, 1e6  # more than a slow disk of a busy machine takes
_TOO_LONG = "takes too long to read"
_THREADS = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def load_itk(path: Path) -> Loaded:
    """Read a three-dimensional NRRD or MetaImage file with HU in it.

    Another process reads it, within limits of time and memory: damaged files crash the library.

    Args:
        path: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Raises:
        MedQDMError: damaged, or not one three-dimensional volume.
    """
    most = most_of(data_files(path))
    with tempfile.TemporaryDirectory(prefix="medqdm-") as folder:
        facts = _run_reader(path, Path(folder), most)
        if facts["num_bytes"] is None:
            raise MedQDMError(
                f"{path.name}: must be one three-dimensional volume of single numbers, got size "
                f"{tuple(facts['size'])} with {facts['num_components']} value(s) each; "
                "save each volume as a file of its own"
            )
        check_itk_claim(path, math.prod(facts["size"]), facts["num_bytes"], most)
        check_packed(path, facts["num_bytes"])
        stored = np.load(Path(folder) / "voxels.npy", mmap_mode="r")
        voxels = stored.astype(np.float32).transpose(2, 1, 0)
        del stored  # some systems remove no file that is mapped
    fields = facts["metadata"]
    warnings: tuple[str, ...] = ()
    if fields.get(_READ_BY) == "NrrdImageIO" and fields.get("NRRD_space") != _LPS:
        warnings += ("the header names no space of the patient; the place there is a guess",)
    kept = {key: value for key, value in fields.items() if not key.startswith(_ABOUT_THE_FILE)}
    source = Source("itk", path.name, {"metadata": kept}, warnings, is_enhanced=_OURS in fields)
    affine = _affine(facts["spacing"], facts["direction"], facts["origin"])
    return Loaded(Lattice(voxels, affine), source, facts["encoding"])


def _run_reader(path: Path, folder: Path, most: Most) -> dict[str, Any]:
    """The header's facts; the voxels are in the folder, unless they are more than can be."""
    sites = {Path(str(module.__file__)).parents[1] for module in (sitk, np)}
    command = (sys.executable, "-I", _READER, path.absolute(), folder,
               most.num_bytes, most.num_voxels, *sites)  # fmt: skip
    seconds = _SECONDS + most.num_held / _BYTES_A_SECOND
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # the library quotes the header there
            env=os.environ | dict.fromkeys(_THREADS, "1"),  # each thread maps memory
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unreadable(path, _TOO_LONG) from None
    if done.returncode == NO_ROOM:
        raise MedQDMError(
            f"{path.name}: its voxels must fit into the temporary folder {folder.parent} while "
            "they are read, got too little room there; free some space or set TMPDIR"
        )
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        raise _unreadable(path, _TOO_LONG)
    if done.returncode == NO_MEMORY:
        raise _unreadable(path, "needs more memory than its voxels")
    if done.returncode:
        crashed = done.returncode < 0
        raise _unreadable(path, "crashes its reader" if crashed else "cannot be read")
    facts: dict[str, Any] = json.loads((folder / "header.json").read_text(encoding="ascii"))
    return facts


def _unreadable(path: Path, what: str) -> MedQDMError:
    return MedQDMError(
        f"{path.name}: must be a whole NRRD or MetaImage file, got one that {what}; "
        "it is damaged or its data file is missing"
    )


def write_itk(source: Volume, volume: Volume, path: Path, *, overwrite: bool = False) -> None:
    """Write a volume as int16 NRRD or MetaImage, whole or not at all.

    Args:
        source: the volume as it was read; its metadata and padding are carried on.
        volume: the same slices with new pixels.
        path: ``.nrrd`` or ``.mha``.
        overwrite: whether an existing file may be replaced.

    Raises:
        MedQDMError: uneven slices, an outer edge that would move, or the file exists.
    """
    if path.suffix.lower() not in _SINGLE_FILE:
        raise MedQDMError(
            f"{path.name}: the output must end in .nrrd or .mha, got {path.suffix or 'no ending'}; "
            "formats with a separate data file cannot appear whole"
        )
    target = place(source, volume)
    with whole_file(path, overwrite=overwrite) as partial:
        # SimpleITK cannot write in parts: the int16 voxels of this format are held in memory
        voxels = np.stack(list(planes(source, volume, scratch=partial.parent)))
        image = sitk.GetImageFromArray(voxels)
        del voxels
        steps = target.affine[:3, :3]
        spacing = np.linalg.norm(steps, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((steps / spacing).ravel().tolist())
        image.SetOrigin(target.affine[:3, 3].tolist())
        if source.source.kind == "itk":
            for key, value in source.source.headers["metadata"].items():
                image.SetMetaData(key, value)
        image.SetMetaData(_OURS, "derived by AI super-resolution")
        sitk.WriteImage(image, str(partial), useCompression=True)
        written = sitk.ImageFileReader()
        written.SetFileName(str(partial))
        written.ReadImageInformation()
        affine = _affine(written.GetSpacing(), written.GetDirection(), written.GetOrigin())
        found = Place(written.GetSize(), affine)
        expected = place(source, source).corners_mm()
        check_same_edges(expected, found.corners_mm(), where=path.name)


def _affine(
    spacing: Sequence[float], direction: Sequence[float], origin: Sequence[float]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) * spacing
    affine[:3, 3] = origin
    return affine
