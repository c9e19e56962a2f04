"""The process that reads one NRRD or MetaImage file.

A damaged file may crash or hang the library that reads it. ``itk.py`` runs this script with limits
of time and memory: ``python -I itk_child.py FILE FOLDER MOST_BYTES MOST_VOXELS [SITE ...]``. It
leaves ``header.json`` in FOLDER, and ``voxels.npy`` if the file is one three-dimensional volume of
no more than that. It imports nothing of medqdm, so that it starts fast; the folders SITE hold
SimpleITK and NumPy.
"""

import json
import math
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

UNREADABLE, NO_MEMORY, NO_ROOM = 1, 3, 4  # exit codes
_HEADER_SECONDS, _HEADER_BYTES = 3, 1 << 29  # of memory; no header needs more
_VOXELS_SECONDS, _BYTES_A_SECOND = 30, 5_000_000  # slower than any processor
_COPIES = 4  # of the voxels: packed, unpacked, as an image, and as an array


def main() -> int:
    """Read the file that the arguments name.

    Returns:
        0, or one of the exit codes above.
    """
    file, folder, most_bytes, most_voxels, *sites = sys.argv[1:]
    sys.path += sites
    import SimpleITK as sitk  # noqa: N813, PLC0415  (its usual name; after the path is set)

    try:
        _allow(_HEADER_SECONDS, _HEADER_BYTES)
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        facts = _facts(reader, sitk.GetPixelIDValueAsString(reader.GetPixelID()))
        (Path(folder) / "header.json").write_text(json.dumps(facts), encoding="ascii")
        num_bytes, num_voxels = facts["num_bytes"], math.prod(facts["size"])
        if num_bytes and num_bytes <= int(most_bytes) and num_voxels <= int(most_voxels):
            seconds = _VOXELS_SECONDS + num_bytes // _BYTES_A_SECOND
            _allow(seconds, _HEADER_BYTES + _COPIES * num_bytes)
            return _write(sitk.GetArrayFromImage(reader.Execute()), folder)
    except MemoryError:
        return NO_MEMORY
    except Exception as error:  # of ITK's and its wrapper's many
        return NO_MEMORY if re.search("bad_alloc|allocate memory", str(error)) else UNREADABLE
    return 0


def _facts(reader: Any, encoding: str) -> dict[str, Any]:
    """What the header says; ``num_bytes`` is None if it is no volume of single numbers."""
    scalar = re.fullmatch(r"(?:vector of )?(\d+)-bit (?:(?:un)?signed integer|float)", encoding)
    size, num_components = reader.GetSize(), reader.GetNumberOfComponents()
    is_volume = len(size) == 3 and num_components == 1 and min(size) > 0 and scalar is not None
    return {
        "size": size,
        "num_components": num_components,
        "encoding": encoding.removeprefix("vector of "),
        "num_bytes": math.prod(size) * int(scalar[1]) // 8 if is_volume and scalar else None,
        "spacing": reader.GetSpacing(),
        "direction": reader.GetDirection(),
        "origin": reader.GetOrigin(),
        "metadata": {
            key: reader.GetMetaData(key)
            for key in filter(_is_text, reader.GetMetaDataKeys())
            if _is_text(reader.GetMetaData(key))
        },
    }


def _is_text(value: str) -> bool:
    """What is none cannot be written again."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(voxels: Any, folder: str) -> int:
    import numpy as np  # noqa: PLC0415  (after the path is set)

    try:
        np.save(Path(folder) / "voxels.npy", voxels.reshape(voxels.shape[:3]))
    except OSError:
        return NO_ROOM
    return 0


def _allow(seconds: int, num_bytes: int) -> None:
    """Bound processor time and memory to what is used by now and some more, where the system can.

    Time of the processor, as a busy machine or a slow disk makes no file suspicious. No image of
    the memory is left on the disk by a crash: it may show a patient.
    """
    try:
        import resource  # noqa: PLC0415  (not on every system)
    except ImportError:
        return
    _bound(resource, resource.RLIMIT_CORE, 0)
    _bound(resource, resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
    with suppress(OSError):  # where there is no such file, the limit does nothing
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _bound(resource, resource.RLIMIT_AS, pages * resource.getpagesize() + num_bytes)


def _bound(resource: Any, what: int, wanted: int) -> None:
    hard = resource.getrlimit(what)[1]
    with suppress(OSError, ValueError):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(what, (soft, hard))


if __name__ == "__main__":
    sys.exit(main())
