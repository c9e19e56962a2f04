"""Pixels: stored words of a CT slice to HU, with padding kept apart."""

import struct
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import UID, RLELossless

from medqdm.errors import MedQDMError
from medqdm.io.dicom_words import mask, read_words
from medqdm.io.padding import CODE_HU, fill, find_declared, find_undeclared

_NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_END_OF_IMAGE = b"\xff\xd9"  # JPEG, JPEG-LS and JPEG 2000 streams all end with it
_WORD_BITS = 16
_HU_CODES = {"[hnsf'U]", "HU"}
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}  # defined terms, C.11.1.1.2
_DECODERS = "pylibjpeg pylibjpeg-openjpeg pyjpegls python-gdcm"
LOSSY_METHODS = {  # transfer syntaxes that lose, unless LossyImageCompression says 00
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG; F7 is JPEG-LS


class Pixels(NamedTuple):
    """A slice in HU.

    Args:
        hu: ``(y, x)`` float32, padding filled with its nearest measured neighbour.
        padding: ``(y, x)`` bool, True where the file holds padding.
        undeclared: the stored padding value if the header names none or another one, else None.
        num_measured_codes: pixels with the declared padding value that are no padding.
        high_bits: what lies above BitsStored, see ``dicom_words.Words``.
    """

    hu: NDArray[np.float32]
    padding: NDArray[np.bool_]
    undeclared: int | None
    num_measured_codes: int
    high_bits: str


def to_hu(dataset: Dataset, *, where: str) -> Pixels:
    """Decode one slice.

    Args:
        dataset: a CT dataset with PixelData.
        where: what messages call it.

    Raises:
        MedQDMError: a tag that the values depend on is missing, or the pixels are damaged.
    """
    _check_tags(dataset, where)
    words = _decode(dataset, where).astype(np.int32) & 0xFFFF
    signed = words.astype(np.uint16).astype(np.int16).astype(np.int32)
    if dataset.PixelRepresentation:
        words = signed
    stored = wide = mask(words, dataset)
    is_wide = stored != words
    high_bits = ""
    if is_wide.any():
        # codes may lie outside of BitsStored, with a sign even in unsigned words
        wide = np.where(is_wide & (signed < 0), signed, stored)
        may_be_code = _may_be_code(words, stored, wide, dataset)
        stored, high_bits = read_words(words, dataset, may_be_code)
        wide = stored if high_bits == "values" else wide
    hu = _hu(stored, dataset)
    is_code = _holds_code(words, stored, dataset)
    padding = find_declared(is_code)
    code, is_lossy = None, _is_lossy(dataset)
    if is_lossy or not padding[[0, 0, -1, -1], [0, -1, 0, -1]].all():
        wide_hu = hu if wide is stored else _hu(wide, dataset)
        undeclared = find_undeclared(wide_hu, is_lossy=is_lossy)
        if undeclared is not None:
            if not (padding.any() or (is_code & undeclared).any()):
                code = int(wide[0, 0]) if dataset.PixelRepresentation else int(wide[0, 0]) & 0xFFFF
            padding = padding | undeclared
    num_measured = int(np.count_nonzero(is_code & ~padding))
    return Pixels(fill(hu.astype(np.float32), padding), padding, code, num_measured, high_bits)


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Smallest and largest stored value that BitsStored and PixelRepresentation can hold."""
    bits = int(dataset.BitsStored)
    if dataset.PixelRepresentation:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def padding_ends(dataset: Dataset) -> tuple[int, int] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit as stored values; None if undeclared.

    Without a limit both are the value. Either may be the larger one. They may stand in the header
    with the wrong sign (63536 for -2000); the 16-bit pattern counts.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    return _as_word(value, dataset), _as_word(value if limit is None else limit, dataset)


def _as_word(value: object, dataset: Dataset) -> int:
    if isinstance(value, bytes):  # undecoded because the VR was ambiguous
        value = int.from_bytes(value[:2], "little")
    word = int(value) & 0xFFFF  # type: ignore[call-overload]
    return word - 0x10000 if dataset.PixelRepresentation and word & 0x8000 else word


def _check_tags(dataset: Dataset, where: str) -> None:
    missing = [t for t in (*_NEEDED, "RescaleSlope", "RescaleIntercept") if dataset.get(t) is None]
    if missing:
        raise MedQDMError(
            f"{where}: a CT slice must have {missing[0]}, got none; HU cannot be known without it, "
            "export the series again"
        )
    whole = (*_NEEDED, "SamplesPerPixel", "HighBit")
    if not all(isinstance(dataset.get(t, 1), int) for t in whole):
        raise MedQDMError(
            f"{where}: {', '.join(whole[2:])} must be whole numbers, got something else; its "
            "header is damaged"
        )
    samples = dataset.get("SamplesPerPixel", 1)
    if samples != 1 or dataset.BitsAllocated not in (8, _WORD_BITS):
        raise MedQDMError(
            f"{where}: pixels must be one sample of 16 bits, got "
            f"{samples} of {dataset.BitsAllocated}; "
            "this is no CT in Hounsfield units"
        )
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    if (
        not 1 <= bits <= dataset.BitsAllocated
        or not 0 <= high < dataset.BitsAllocated
        or dataset.PixelRepresentation not in (0, 1)
    ):
        raise MedQDMError(
            f"{where}: BitsStored, HighBit and PixelRepresentation must fit in "
            f"{dataset.BitsAllocated} bits, got {bits}, {high} and {dataset.PixelRepresentation}; "
            "its header is damaged"
        )
    if float(dataset.RescaleSlope) == 0:
        raise MedQDMError(
            f"{where}: RescaleSlope must not be 0, got 0; its header is damaged, "
            "export the series again"
        )
    _check_units(dataset, where)


def _check_units(dataset: Dataset, where: str) -> None:
    """Maps of blood flow, iodine or effective Z come as CT images too; they hold no HU."""
    kind = str(dataset.get("RescaleType", None) or "HU").strip()
    if kind not in ("HU", "US"):  # US is what GDCM writes for an absent type
        named = kind if kind in _OTHER_UNITS else "another one"
        raise MedQDMError(
            f"{where}: RescaleType must be HU, got {named}; only Hounsfield units can be enhanced"
        )
    units = {
        str(code.get("CodeValue"))
        for mapping in dataset.get("RealWorldValueMappingSequence") or []
        for code in mapping.get("MeasurementUnitsCodeSequence") or []
    }
    if units and not units & _HU_CODES:
        raise MedQDMError(
            f"{where}: pixels must be in HU, got a map of another quantity by its "
            "RealWorldValueMappingSequence; only Hounsfield units can be enhanced"
        )


def _decode(dataset: Dataset, where: str) -> NDArray[np.integer]:
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = (int(dataset.Rows), int(dataset.Columns))
    _check_length(dataset, where)
    try:
        words = pixel_array(dataset, raw=True, correct_unused_bits=False)
    except Exception as error:
        raise MedQDMError(
            f"{where}: pixels must be readable, got {type(error).__name__} from the decoder of "
            f"{syntax_name(syntax)}; the file is damaged, or no installed decoder reads it: run "
            f"'pip install {_DECODERS}', or convert it to Explicit VR Little Endian with "
            "another tool"
        ) from None
    if words.shape != shape:
        raise MedQDMError(
            f"{where}: pixels must have the shape {shape} of the header, got {words.shape}; "
            "the file is damaged or multi-frame"
        )
    return words


def syntax_name(syntax: Any) -> str:
    """The name of a transfer syntax; another value may be anything and is not quoted."""
    is_known = isinstance(syntax, UID) and syntax.name not in ("", syntax)
    return syntax.name if is_known else "an unknown transfer syntax"


def _check_length(dataset: Dataset, where: str) -> None:
    """Cut files are refused: some decoders fill the rest with invented values.

    Streams that are larger than the header says are refused too, before memory is asked for.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = (int(dataset.Rows), int(dataset.Columns))
    if not syntax.is_compressed or syntax.is_deflated:
        whole = len(dataset.PixelData) >= shape[0] * shape[1] * int(dataset.BitsAllocated) // 8
    else:
        try:
            frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        except (ValueError, EOFError, StopIteration):
            frame = b""
        # the decoder of RLE checks the length, but not whether there is far too much
        whole = bool(frame) if syntax == RLELossless else _END_OF_IMAGE in frame[-64:]
        found = stream_shape(frame)
        if syntax == RLELossless and _is_rle_longer(frame, 2 * shape[0] * shape[1]):
            raise MedQDMError(
                f"{where}: pixels must have the shape {shape} of the header, got more of them in "
                "the compressed stream; the file is damaged"
            )
        if whole and found is not None and found != shape:
            raise MedQDMError(
                f"{where}: pixels must have the shape {shape} of the header, got {found} in the "
                "compressed stream; the file is damaged"
            )
    if not whole:
        raise MedQDMError(
            f"{where}: a CT file must hold all its pixels, got a truncated file; "
            "copy it again, or take it out of the series"
        )


def _is_rle_longer(frame: bytes, most: int) -> bool:
    """Whether a segment would be decoded to more bytes than that."""
    count = min(15, int.from_bytes(frame[:4], "little"), len(frame) // 4 - 1)
    starts = struct.unpack_from(f"<{max(0, count)}L", frame, 4) if count > 0 else ()
    for start, stop in pairwise((*starts, len(frame))):
        at, size = start, 0
        while at < stop and size <= most:
            control = frame[at]
            size += control + 1 if control < 128 else (257 - control) % 129
            at += control + 2 if control < 128 else 2 if control > 128 else 1
        if size > most:
            return True
    return False


def stream_shape(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream says of itself; None if unclear.

    Args:
        frame: the stream.
    """
    if frame[:2] == b"\xff\xd8":
        return _jpeg_shape(frame)
    start = frame.find(b"\xff\x4f\xff\x51", 0, 1 << 12)  # of the codestream, within a JP2 box
    if start < 0 or len(frame) < start + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    return bottom - top, right - left


def _jpeg_shape(frame: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">2H", frame, at + 5)
            return int(rows), int(columns)
        if marker == 0xFF:  # a fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _is_lossy(dataset: Dataset) -> bool:
    told = str(dataset.get("LossyImageCompression") or "")
    return told == "01" or (
        told != "00" and str(dataset.file_meta.TransferSyntaxUID) in LOSSY_METHODS
    )


def _hu(stored: NDArray[np.int32], dataset: Dataset) -> NDArray[np.float64]:
    return np.asarray(stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))


def _holds_code(
    words: NDArray[np.int32], stored: NDArray[np.int32], dataset: Dataset
) -> NDArray[np.bool_]:
    """Where the declared padding value is, as padding or as a measured value."""
    ends = padding_ends(dataset)
    if ends is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = stored_range(dataset)
    # a code outside of BitsStored shows in the whole words only
    values = stored if low <= min(ends) and max(ends) <= high else words
    return (values >= min(ends)) & (values <= max(ends))


def _may_be_code(
    words: NDArray[np.int32],
    stored: NDArray[np.int32],
    wide: NDArray[np.int32],
    dataset: Dataset,
) -> NDArray[np.bool_]:
    """Where the declared padding value is, or an undeclared one that fills all four corners."""
    is_code = _holds_code(words, stored, dataset)
    corners = wide[[0, 0, -1, -1], [0, -1, 0, -1]]
    if np.ptp(corners) == 0 and _hu(corners[0], dataset) < CODE_HU:
        is_code = is_code | (wide == corners[0])
    return is_code
