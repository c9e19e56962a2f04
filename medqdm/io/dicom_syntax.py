"""Transfer syntaxes that medqdm writes, all of them lossless."""

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "jpeg-ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
    "rle": RLELossless,
}


def set_pixels(header: Dataset, words: NDArray[np.integer], name: str) -> None:
    """Put stored words into a dataset with file meta, and name its transfer syntax there.

    Args:
        header: of the slice; its rows, columns, bits and sign describe the words.
        words: ``(y, x)`` 16-bit words, signed as PixelRepresentation says.
        name: one of ``SYNTAXES``.
    """
    syntax = UID(SYNTAXES[name])
    if syntax.is_encapsulated:
        plugin = "pydicom" if name == "rle" else ""
        header.compress(
            syntax, words, encoding_plugin=plugin, generate_instance_uid=False, jls_error=None
        )
    else:
        header.add_new("PixelData", "OW", words.tobytes())
    header.file_meta.TransferSyntaxUID = syntax
