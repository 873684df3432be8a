"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import RequestError


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the name `path` once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers replace the file by one that only its owner may read.
        temporary.chmod(mode)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_format(path: Path) -> None:
    """Refuse a path whose ending names no format of `write_theta`.

    Raises:
        RequestError: with the endings that do.
    """
    if path.suffix not in _FORMATS:
        raise RequestError(f"{path}: the ending {path.suffix!r} is unknown; allowed are {' and '.join(_FORMATS)}")


def write_theta(path: Path, theta: Mapping[str, NDArray[Any]]) -> None:
    """Write named tensors as `.npz` or `.safetensors`, by the ending of `path`; the same θ gives the same bytes.

    Raises:
        RequestError: for another ending, or a path that cannot be written.
    """
    check_format(path)
    try:
        with atomically(path) as temporary:
            _FORMATS[path.suffix](temporary, theta)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written: {error.strerror}") from None


def _write_npz(path: Path, theta: Mapping[str, NDArray[Any]]) -> None:
    # np.savez takes tensor names as keyword arguments, so that a tensor could not be called "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in theta.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _write_safetensors(path: Path, theta: Mapping[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.asarray(values, order="C") for name, values in theta.items()}, path)


_FORMATS = {".npz": _write_npz, ".safetensors": _write_safetensors}
