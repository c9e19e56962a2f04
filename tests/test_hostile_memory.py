"""Memory of hostile input: never more than twice what an honest file of that size takes.

Each file is read by a process of its own, forked from one that has read an honest file before. An
honest file is a CT slice whose pixels fill as many bytes as the hostile file has on the disk.
``pytest -s`` prints the table.
"""

import gzip
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

READER = """
import os, resource, sys
from pathlib import Path
from medqdm import io
from medqdm.errors import MedQDMError

def read(path):
    try:
        io.take_inventory(path)
        for image in io.read(path).hu:
            assert image.any() or True
    except MedQDMError:
        pass

for path in sys.argv[1:]:  # whatever is loaded late is there for all
    read(Path(path))
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read(Path(line.rstrip("\\n")))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("failed", flush=True)
"""
CT = Path(str(get_testdata_file("CT_small.dcm")))
PIXELS = b"\xe0\x7f\x10\x00"
ITEM = b"\xfe\xff\x00\xe0"
MOST_TIMES = 2.0
SLACK_KIB = 2 << 10  # pages that a process touches or not, as it happens


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], int]]:
    """A function that reads a path in a process of its own: how much it grew, in KiB."""
    folder = tmp_path_factory.mktemp("warm")
    warm = [honest(folder / "explicit", 1 << 20)]
    for name, syntax in (("rle", RLELossless), ("jls", JPEGLSLossless)):
        dataset = pydicom.dcmread(CT)
        dataset.compress(syntax)
        dataset.save_as(folder / name)
        warm.append(folder / name)
    command = [sys.executable, "-c", READER, *map(str, warm)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def read(path: Path) -> int:
            server.stdin.write(f"{path}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield read
        server.stdin.close()


def honest(path: Path, num_bytes: int) -> Path:
    """A CT slice whose pixels fill that many bytes; less than 64 x 64 pixels make no sense."""
    dataset = pydicom.dcmread(CT)
    side = max(64, round((num_bytes / 2) ** 0.5))
    dataset.Rows = dataset.Columns = side
    words = np.random.default_rng(0).integers(0, 2000, (side, side))
    dataset.PixelData = words.astype("<u2").tobytes()
    dataset.save_as(path)
    return path


def with_elements(elements: bytes) -> bytes:
    """CT_small with more elements before its pixels."""
    whole = CT.read_bytes()
    end = whole.index(PIXELS)
    return whole[:end] + elements + whole[end:]


def sequence(items: bytes) -> bytes:
    return b"\x40\x00\x75\x02SQ\0\0" + struct.pack("<I", len(items)) + items


def compressed(syntax: pydicom.uid.UID, frame: bytes) -> bytes:
    dataset = pydicom.dcmread(CT)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return saved(dataset)


def saved(dataset: Dataset) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def deflated(elements: bytes = b"", after: bytes = b"") -> bytes:
    """CT_small, deflated, with more in it."""
    dataset = pydicom.dcmread(CT)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = saved(dataset)
    start = 144 + int.from_bytes(whole[140:144], "little")
    body = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    end = body.index(PIXELS)
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = pack.compress(body[:end] + elements + body[end:] + after) + pack.flush()
    return whole[:start] + packed + b"\0" * (len(packed) % 2)


def rle_bomb() -> bytes:
    """Two segments of runs that make 128 bytes of 2 each."""
    runs = b"\x81\x00" * 200_000
    header = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13)
    return compressed(RLELossless, header + runs + runs)


def jpeg_ls_bomb() -> bytes:
    dataset = pydicom.dcmread(CT)
    dataset.Rows = dataset.Columns = 8000
    dataset.PixelData = bytes(2 * 8000 * 8000)
    dataset.compress(JPEGLSLossless)
    dataset.Rows = dataset.Columns = 128
    return saved(dataset)


def liar(**tags: object) -> bytes:
    dataset = pydicom.dcmread(CT)
    with pydicom.config.disable_value_validation():
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        return saved(dataset)


def nifti(num_bytes: int) -> bytes:
    """A header that claims more voxels than follow."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    side = round((num_bytes / 2) ** (1 / 3))
    struct.pack_into("<4h", header, 40, 3, side, side, side)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, 0.7, 0.7, 2.0)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    header[123] = 2
    return bytes(header)


BARE = struct.pack("<HH", 0x0041, 0x0001)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty items": lambda: with_elements(sequence((ITEM + bytes(4)) * 190_000)),
    "items with one value": lambda: with_elements(
        sequence((ITEM + struct.pack("<I", 10) + b"\x08\x00\x00\x01SH\x02\x00AB") * 100_000)
    ),
    "items of undefined length": lambda: with_elements(
        b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
        + (ITEM + b"\xff\xff\xff\xff\xfe\xff\x0d\xe0\0\0\0\0") * 100_000
        + b"\xfe\xff\xdd\xe0\0\0\0\0"
    ),
    "sequence without end": lambda: (
        CT.read_bytes()[: CT.read_bytes().index(PIXELS)]
        + b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
        + (ITEM + bytes(4)) * 190_000
    ),
    "elements without end": lambda: with_elements(
        b"".join(
            struct.pack("<HH", group, element) + b"SH\x02\x00AB"
            for group in range(0x0040, 0x0068, 2)
            for element in range(0x3000, 0x6000)
        )
    ),
    "elements without end, in an item": lambda: with_elements(
        sequence(
            ITEM
            + struct.pack("<I", 300_000 * 10)
            + b"".join(
                struct.pack("<HH", 0x0040 + 2 * (k >> 15), 0x3000 + (k & 0x7FFF)) + b"SH\x02\x00AB"
                for k in range(300_000)
            )
        )
    ),
    "numbers without end": lambda: with_elements(
        b"".join(
            struct.pack("<HH", 0x0040, 0x0300 + 2 * k)
            + b"DS"
            + struct.pack("<H", 60_000)
            + b"1\\" * 30_000
            for k in range(100)
        )
    ),
    "numbers of one element": lambda: with_elements(
        struct.pack("<HH", 0x0040, 0x0300)
        + b"UC\0\0"
        + struct.pack("<I", 4_000_000)
        + b"1\\" * 2_000_000
    ),
    "nested deep": lambda: with_elements(
        (b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" + ITEM + b"\xff\xff\xff\xff") * 3000
        + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * 3000
    ),
    "deflated zeros after the pixels": lambda: deflated(after=bytes(200 << 20)),
    "deflated elements": lambda: deflated(
        b"".join(
            struct.pack("<HH", group, element) + b"SH\x02\x00AB"
            for group in range(0x0040, 0x0090, 2)
            for element in range(0x3000, 0xF000)
        )
    ),
    "deflated items": lambda: deflated(sequence((ITEM + bytes(4)) * 190_000)),
    "RLE runs": rle_bomb,
    "JPEG-LS of another size": jpeg_ls_bomb,
    "matrix of 65535": lambda: liar(Rows=65535, Columns=65535),
    "matrix of 8000": lambda: liar(Rows=8000, Columns=8000),
    "frames without end": lambda: liar(NumberOfFrames=2**31 - 1),
    "scan.nii": lambda: nifti(200 << 20) + bytes(1000),
    "scan.nii.gz": lambda: gzip.compress(nifti(50 << 20) + bytes(2 << 20)),
    "claims.nii.gz": lambda: gzip.compress(nifti(50 << 20)) + bytes(60_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_take_no_more_than_twice_an_honest_one(
    growth: Callable[[Path], int], tmp_path: Path, name: str
) -> None:
    path = tmp_path / (name if "." in name else "slice")
    path.write_bytes(HOSTILE[name]())
    size = path.stat().st_size
    allowed = growth(honest(tmp_path / "honest", size))
    found = growth(path)
    print(json.dumps({"file": name, "bytes": size, "honest_kib": allowed, "hostile_kib": found}))  # noqa: T201
    assert found <= MOST_TIMES * allowed + SLACK_KIB
