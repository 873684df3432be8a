"""Reads idx, the format of MNIST, plain or gzipped: a big-endian header of the shape, and then the values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Features

#: Value types by the third byte of the file.
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
#: A bound on the bytes skipped at once while looking for a row in a gzipped file.
SKIP_BYTES = 1 << 20


class IdxSource:
    """A pair of idx files as a source: images, flattened, and their labels.

    Bytes are scaled from 0 … 255 to float32 in [0, 1]; other types stay as they are. The labels are the file
    that `label` names, or the one named as the images are, with `labels` for `images` and `idx1` for `idx3`.
    A gzipped file is decompressed up to the last row that is asked for, since it offers no way to jump.

    Raises:
        DataError: if a file is missing or malformed, or there is not one label per image.
    """

    def __init__(self, path: Path, label: str, base: Path | None) -> None:
        labels = (base or Path()) / label if label else path.with_name(_label_name(path.name))
        if labels == path or not labels.is_file():
            expected = f"{labels} was expected; " if labels != path else ""
            raise DataError(f"{path}: its label file is missing: {expected}name one as data.label")
        self._images, self._labels = IdxFile(path), IdxFile(labels)
        count, *shape = self._images.shape
        if not shape or len(self._labels.shape) != 1:
            raise DataError(f"{path}: shape {self._images.shape} and labels {self._labels.shape} do not fit")
        if count != self._labels.shape[0]:
            raise DataError(f"{path}: {count} rows, but {labels} has {self._labels.shape[0]} labels")
        self.rows, self.features = count, math.prod(shape)
        if not self.rows or not self.features:
            raise DataError(f"{path}: shape {self._images.shape} holds no values")

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Read these rows."""
        x = self._images.read(start, stop).reshape(stop - start, self.features)
        if x.dtype == np.uint8:
            x = x.astype(np.float32) / np.float32(255)
        return x, self.labels(start, stop)

    def labels(self, start: int, stop: int) -> NDArray[Any]:
        """Read the labels of these rows, and no images."""
        return self._labels.read(start, stop)


class IdxFile:
    """One idx file, of which ranges of the first axis can be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._gzipped = file.read(2) == GZIP_MAGIC
        with self._open() as file:
            zeros, code, axes = struct.unpack(">HBB", self._take(file, 4))
            if zeros or code not in DTYPES or not axes:
                raise DataError(f"{path}: not an idx file: it does not begin with two zeros, a type and a rank")
            self.shape = struct.unpack(f">{axes}I", self._take(file, 4 * axes))
        self._dtype = np.dtype(DTYPES[code])
        self._offset = 4 + 4 * axes
        size = self._offset + math.prod(self.shape) * self._dtype.itemsize
        if not self._gzipped and path.stat().st_size != size:
            raise DataError(f"{path}: {path.stat().st_size} bytes found; its shape {self.shape} needs {size}")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return these entries of the first axis in the machine's byte order."""
        row_bytes = math.prod(self.shape[1:]) * self._dtype.itemsize
        with self._open() as file:
            if self._gzipped:
                self._skip(file, self._offset + start * row_bytes)
            else:
                file.seek(self._offset + start * row_bytes)
            content = self._take(file, (stop - start) * row_bytes)
        values = np.frombuffer(content, self._dtype).astype(self._dtype.newbyteorder("="), copy=False)
        return values.reshape(stop - start, *self.shape[1:])

    def _open(self) -> IO[bytes]:
        return cast(IO[bytes], gzip.open(self._path)) if self._gzipped else self._path.open("rb")

    def _skip(self, file: IO[bytes], count: int) -> None:
        while count:
            count -= len(self._take(file, min(count, SKIP_BYTES)))

    def _take(self, file: IO[bytes], count: int) -> bytes:
        try:
            content = file.read(count)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self._path}: cannot be decompressed: {error}") from None
        if len(content) < count:
            raise DataError(f"{self._path}: the file ends {count - len(content)} bytes too early")
        return content


def _label_name(images: str) -> str:
    return images.replace("images", "labels").replace("idx3", "idx1")
