"""Reads numpy's own files, .npy and .npz, memory-mapped wherever the bytes lie in the file as they are."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from paramserver.wire.errors import DataError, nearest
from paramserver.worker.data.columns import label_column, without_column
from paramserver.worker.data.source import ArraySource

#: Length of a zip member's local header before its name, and where the lengths of name and extra field stand.
LOCAL_HEADER_BYTES, LENGTHS_AT = 30, 26


def open_npy(path: Path, label: str, base: Path | None) -> ArraySource:
    """Return a .npy file as a source; its label is a column of it (default: the last) or another .npy file.

    Raises:
        DataError: if a file is missing or malformed, or the label is not in it.
    """
    table = _load(path)
    if label.endswith(".npy"):
        labels = (base or Path()) / label
        if not labels.is_file():
            raise DataError(f"{path}: no such label file: {labels}")
        return ArraySource(str(path), table, _load(labels))
    if table.ndim != 2:
        raise DataError(f"{path}: shape {table.shape} found; (rows, columns) is expected, or a label file")
    column = label_column(str(path), label, table.shape[1])
    return ArraySource(str(path), without_column(table, column), table[:, column])


def open_npz(path: Path, label: str) -> ArraySource:
    """Return the arrays `x` and `y` of a .npz file as a source; the label is the name of `y`.

    Members that are stored without compression are memory-mapped, others read whole.

    Raises:
        DataError: if the file is malformed or lacks an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            arrays = []
            for wanted in ("x", label or "y"):
                if wanted not in names:
                    hint = nearest(wanted, names) or "."
                    raise DataError(f"{path}: no array {wanted!r}{hint} Arrays: {', '.join(names)}")
                arrays.append(_member(path, archive, names[wanted]))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise DataError(f"{path}: not a .npz file that can be read: {error}") from None
    return ArraySource(str(path), arrays[0], arrays[1])


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a .npy file that can be read: {error}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: an archive of several arrays; name it .npz")
    return array


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as content:
        version = npy_format.read_magic(content)
        if member.compress_type != zipfile.ZIP_STORED or version not in ((1, 0), (2, 0)):
            content.seek(0)
            return np.asarray(npy_format.read_array(content, allow_pickle=False))
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read_header(content)
        start = content.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {member.filename} holds Python objects; real numbers are expected")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(LOCAL_HEADER_BYTES), LENGTHS_AT)
    offset = member.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes + start
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
