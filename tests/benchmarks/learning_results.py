"""Which validation images real networks predict correctly, recorded by ``tools/record_results.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).with_suffix(".npz")


def load() -> npt.NDArray[np.bool_]:
    """Return whether a network of a seed predicts an image correctly, (networks, seeds, images)."""
    with np.load(FILE) as archive:
        bits = np.unpackbits(archive["correct"], axis=-1, count=int(archive["images"]))
    return np.asarray(bits, dtype=np.bool_)
