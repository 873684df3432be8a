"""One number that says whether two runs have learnt the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def theta_sha256(theta: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named tensors in hexadecimal.

    Hashed are the tensors sorted by name (by code point), each as one header line and its values. The header is the
    JSON list `["name", "dtype", [shape]]` as Python's `json.dumps` writes it (ASCII, a space behind each comma)
    followed by a newline; the dtype is numpy's little-endian code such as `<f4`. The values are little-endian in C
    order.
    """
    digest = hashlib.sha256()
    for name in sorted(theta):
        values = np.asarray(theta[name])
        values = np.asarray(values, values.dtype.newbyteorder("<"), order="C")
        digest.update(json.dumps([name, values.dtype.str, list(values.shape)]).encode() + b"\n")
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()
