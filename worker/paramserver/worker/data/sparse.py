"""Sparse matrices; scipy, which holds them, is an optional part of the installation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Features

#: The width of x where column numbers are hashes: any int64 from 0 is one.
HASHED_FEATURES = 2**63 - 1


def hashed(column: str, cells: Sequence[str]) -> NDArray[np.int64]:
    """Return a key from 0 to 2⁶³ − 2 for each cell of a column: a hash of the column's title and the cell's text.

    It is the first 8 bytes of BLAKE2b (digest length 8) of title, a zero byte and text in UTF-8, as a little-endian
    number, without its lowest bit.
    """
    keys = {cell: _key(column, cell) for cell in set(cells)}
    return np.array([keys[cell] for cell in cells], dtype=np.int64)


def _key(column: str, cell: str) -> int:
    digest = hashlib.blake2b(f"{column}\0{cell}".encode(), digest_size=8).digest()
    return min(int.from_bytes(digest, "little") >> 1, HASHED_FEATURES - 1)


def csr(values: NDArray[Any], indices: NDArray[Any], starts: NDArray[Any], features: int) -> Features:
    """Return a csr array of shape (len(starts) − 1, features); row i holds `values[starts[i]:starts[i + 1]]`.

    Raises:
        DataError: if scipy is missing.
    """
    return _csr_array()((values, indices, starts), shape=(len(starts) - 1, features))


def as_csr(x: Any) -> Features:
    """Return a scipy matrix or array of any sparse format as a csr array without duplicate entries."""
    converted = _csr_array()(x)
    if not converted.has_canonical_format:
        converted = converted.copy()
        converted.sum_duplicates()
    return converted


def with_features(x: Features, features: int) -> Features:
    """Return csr `x` with this many features: those beyond are dropped, those that lack are zero.

    Where column numbers are hashes, nothing is dropped.
    """
    if x.shape[1] == HASHED_FEATURES:
        return x
    if x.shape[1] > features:
        return x[:, :features]
    return type(x)((x.data, x.indices, x.indptr), shape=(x.shape[0], features))


def stack_rows(parts: Sequence[Features]) -> Features:
    """Return the rows of all parts, which are all dense or all csr, as one."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    from scipy.sparse import vstack

    return vstack(parts, format="csr")


def _csr_array() -> Any:
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise DataError("sparse data needs scipy, which is missing: pip install 'paramserver[sparse]'") from None
    return csr_array
