import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from paramserver.wire.fingerprint import theta_sha256

THETA = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(1.5), "ε": np.zeros((0, 2))}


def test_it_is_the_hash_that_its_docstring_describes() -> None:
    hashed = (
        b'["b", "<f8", []]\n' + np.array([1.5], "<f8").tobytes() + b'["w", "<f4", [2, 3]]\n'
        b"\0\0\0\0\0\0\x80?\0\0\0@\0\0@@\0\0\x80@\0\0\xa0@" + b'["\\u03b5", "<f8", [0, 2]]\n'
    )
    assert theta_sha256(THETA) == hashlib.sha256(hashed).hexdigest()


@given(npst.arrays(np.float64, npst.array_shapes(max_dims=3, max_side=4)), st.booleans())
def test_only_values_count_and_not_how_they_lie_in_memory(values: np.ndarray, reverse: bool) -> None:
    plain = {"a": values, "b": values[:1]}
    other = {"b": values[:1].astype(">f8"), "a": np.asfortranarray(values)}
    assert theta_sha256(plain) == theta_sha256(dict(reversed(other.items())) if reverse else other)


@pytest.mark.parametrize(
    "other",
    [
        {**THETA, "w": THETA["w"].T},
        {**THETA, "w": THETA["w"].reshape(3, 2)},
        {**THETA, "w": THETA["w"].astype(np.float64)},
        {**THETA, "w": np.nextafter(THETA["w"], np.float32(9))},
        {"v": THETA["w"], "b": THETA["b"], "ε": THETA["ε"]},
        {"w": THETA["w"], "b": THETA["b"]},
    ],
)
def test_every_difference_of_name_shape_dtype_or_one_bit_shows(other: dict[str, np.ndarray]) -> None:
    assert theta_sha256(other) != theta_sha256(THETA)
