"""Signs and mean magnitudes against their definition, and what a liar may send."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paramserver.wire.codecs.sign import BUCKET, Sign
from paramserver.wire.errors import TensorError

Array = np.ndarray[Any, Any]
CODEC = Sign()


@given(hnp.arrays(np.float32, st.integers(1, 2 * BUCKET + 9), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_a_value_becomes_the_mean_magnitude_with_its_sign(values: Array) -> None:
    out = np.empty(CODEC.nbytes(values.size), np.uint8)
    assert out.size == 4 * -(-values.size // BUCKET) + -(-values.size // 8)
    assert CODEC.encode(values, out)
    found = np.empty_like(values)
    assert CODEC.decode(out.data, found)
    for start in range(0, values.size, BUCKET):
        part = values[start : start + BUCKET].astype(np.float64)
        expected = np.where(part >= 0, 1, -1) * np.abs(part).mean()
        np.testing.assert_allclose(found[start : start + BUCKET], expected, rtol=1e-6, atol=1e-44)
        # What error feedback needs: the error is smaller than the value.
        assert np.linalg.norm(found[start : start + BUCKET] - part) <= np.linalg.norm(part) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("scale", "bits", "said"),
    [(-1.0, 0, "a scale is -1.0"), (np.nan, 0, "a scale is nan"), (1.0, 0b100000, "bits behind the last")],
)
def test_what_no_encoder_writes_is_refused(scale: float, bits: int, said: str) -> None:
    payload = np.float32(scale).tobytes() + bytes([bits])
    with pytest.raises(TensorError, match=said):
        CODEC.decode(memoryview(payload), np.empty(5, np.float32))


def test_an_infinite_scale_is_told() -> None:
    assert not CODEC.decode(memoryview(np.float32(np.inf).tobytes() + b"\0"), np.empty(5, np.float32))
