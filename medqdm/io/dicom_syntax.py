"""Transfer syntaxes that medqdm writes, all of them lossless."""

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "jpeg-ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
    "htj2k": HTJ2KLossless,
    "rle": RLELossless,
}
_WORD_BITS = 16


def choose_bits(header: Dataset, name: str) -> None:
    """Widen BitsStored where the encoder knows whole words only; values stay what they are."""
    if name == "htj2k":
        header.BitsStored, header.HighBit = _WORD_BITS, _WORD_BITS - 1


def set_pixels(header: Dataset, words: NDArray[np.integer], name: str) -> None:
    """Put stored words into a dataset with file meta, and name its transfer syntax there.

    Args:
        header: of the slice; its rows, columns, bits and sign describe the words.
        words: ``(y, x)`` 16-bit words, signed as PixelRepresentation says.
        name: one of ``SYNTAXES``.
    """
    syntax = UID(SYNTAXES[name])
    if name == "htj2k":
        stream = imagecodecs.htj2k_encode(words, reversible=True)
        header.add_new("PixelData", "OB", encapsulate([stream]))
        header["PixelData"].is_undefined_length = True
    elif syntax.is_encapsulated:
        plugin = "pydicom" if name == "rle" else ""
        header.compress(
            syntax, words, encoding_plugin=plugin, generate_instance_uid=False, jls_error=None
        )
    else:
        header.add_new("PixelData", "OW", words.tobytes())
    header.file_meta.TransferSyntaxUID = syntax
