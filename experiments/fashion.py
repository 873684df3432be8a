"""Fashion-MNIST as sources of data, decompressed once in a process; Debian has it as dataset-fashion-mnist."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from paramserver.worker.data import open_source

FOLDER = Path("/usr/share/datasets/fashion-mnist")
AVAILABLE = FOLDER.is_dir()


@lru_cache(maxsize=1)
def train() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return 60,000 images of 28 × 28 pixels, float32 in [0, 1], and their classes."""
    return _read("train")


@lru_cache(maxsize=1)
def test() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return 10,000 images and their classes."""
    return _read("t10k")


def _read(part: str) -> tuple[NDArray[Any], NDArray[Any]]:
    source = open_source(str(FOLDER / f"{part}-images-idx3-ubyte.gz"))
    return source.read(0, source.rows)
