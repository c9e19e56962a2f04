"""Identity: a digest of all of a source that its outputs depend on or carry on."""

import copy
from collections.abc import Iterator, MutableSequence
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medqdm.io.dicom_owner import UNDECODABLE
from medqdm.io.dicom_scan import tolerant
from medqdm.volume import Source, Volume, slice_digests


def digest_source(source: Volume) -> str:
    """A digest of pixels, padding, geometry and every header element, by decoded value.

    Args:
        source: the volume as it was read; its headers are left alone.
    """
    digest = sha256()
    for part in _parts(source):
        digest.update(sha256(part).digest())
    return digest.hexdigest()


def _parts(source: Volume) -> Iterator[bytes]:
    yield source.source.kind.encode()
    yield repr((source.shape, source.source.acquisition)).encode()
    for array in (source.origins_mm, source.x_step_mm, source.y_step_mm):
        yield array.tobytes()
    yield b"".join(slice_digests(source.hu))
    yield b"" if source.padding is None else b"".join(slice_digests(source.padding))
    yield from _headers(source.source)


def _headers(source: Source) -> Iterator[bytes]:
    if source.kind == "dicom":
        with tolerant():
            for header in source.headers:  # on a copy: what is merely kept stays undecoded
                yield _as_bytes(_elements(copy.deepcopy(header)))
    elif source.headers is not None:
        for key, value in sorted(source.headers.items()):
            yield _as_bytes([key, _field(value)])


def _as_bytes(value: object) -> bytes:
    return repr(value).encode(errors="surrogatepass")


def _elements(dataset: Dataset) -> list[tuple[int, str, Any]]:
    found = []
    for tag in sorted(dataset.keys()):
        raw = dataset.get_item(tag)
        element = dataset[tag]
        value = _value(element.value)
        if isinstance(raw, RawDataElement) and UNDECODABLE in str(value):
            value = [value, raw.value]  # two texts may look the same then
        found.append((int(tag), element.VR, value))
    return found


def _value(value: Any) -> Any:
    if isinstance(value, Dataset):
        return _elements(value)
    if isinstance(value, MutableSequence):
        return [_value(item) for item in value]
    return value if isinstance(value, bytes) else str(value)


def _field(value: Any) -> Any:
    """A field of a NIfTI or ITK source: its header with extensions, an array, texts or a number."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return sorted(value.items())
    if hasattr(value, "write_to"):
        stream = BytesIO()
        value.write_to(stream)
        return stream.getvalue()
    return value
