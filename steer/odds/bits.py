"""How many bits a predictor takes: its program and what it has to remember, compressed."""

import bz2
import lzma
import zlib
from typing import Any

import numpy as np

from steer.odds.belief import array


def complexity(parameters: Any, source: str, *, step: float) -> float:
    """Return the bits of a predictor: its source and its parameters, compressed.

    As the paper: parameters are rounded, delta-coded and compressed by whichever compressor does
    best, each by itself (lzma, bz2, zlib here).

    Args:
        parameters: what the predictor has to remember; may be empty.
        source: its program.
        step: the grid to which parameters are rounded.
    """
    whole = np.round(np.asarray(array(parameters).numpy()).ravel() / step).astype(np.int32)
    coded = np.diff(whole, prepend=0).astype(np.int32)
    # Byte planes: compressors see the small high bytes as runs.
    planes = coded.view(np.uint8).reshape(-1, 4).T.tobytes() if len(coded) else b""
    return 8.0 * sum(_packed(part) for part in (source.encode(), planes) if part)


def _packed(content: bytes) -> int:
    raw: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    small = lzma.compress(content, format=lzma.FORMAT_RAW, filters=raw)
    return min(len(small), len(bz2.compress(content)), len(zlib.compress(content, 9)))
