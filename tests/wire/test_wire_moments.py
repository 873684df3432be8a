from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paramserver.wire.errors import DataError
from paramserver.wire.moments import Moments, combine


def of(x):
    return Moments(len(x), x.mean(axis=0), np.square(x - x.mean(axis=0)).sum(axis=0))


@given(
    x=arrays(np.float64, (12, 3), elements=st.floats(-1e6, 1e6, allow_subnormal=False)),
    cuts=st.sets(st.integers(1, 11)),
)
def test_moments_of_any_disjoint_parts_combine_to_those_of_the_whole(x, cuts):
    bounds = [0, *sorted(cuts), 12]
    total = combine([of(x[a:b]) for a, b in pairwise(bounds)])
    assert total.count == 12
    np.testing.assert_allclose(total.mean, x.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(total.std, x.std(axis=0), rtol=1e-7, atol=1e-4)


def test_far_from_zero_the_deviation_keeps_its_digits():
    x = 1e9 + np.random.default_rng(0).standard_normal((1000, 1))
    total = combine([of(part) for part in np.array_split(x, 7)])
    np.testing.assert_allclose(total.std, x.std(axis=0), rtol=1e-6)


def test_the_flat_form_is_read_back_bit_for_bit():
    moments = of(np.random.default_rng(1).standard_normal((5, 4)))
    read = Moments.from_flat(5, moments.to_flat())
    assert read.count == 5
    assert read.to_flat().tobytes() == moments.to_flat().tobytes()


@pytest.mark.parametrize(
    ("count", "flat"),
    [
        (0, np.zeros(2)),
        (1, np.zeros(3)),
        (1, np.zeros((1, 2))),
        (1, np.zeros(2, np.float32)),
        (1, np.array([0.0, -1.0])),
        (1, np.array([np.nan, 1.0])),
    ],
)
def test_a_flat_form_that_no_moments_have_is_refused(count, flat):
    with pytest.raises(DataError):
        Moments.from_flat(count, flat)


def test_parts_of_different_widths_are_refused_with_their_numbers():
    with pytest.raises(DataError, match=r"has 3 features.*have 2"):
        combine([of(np.ones((2, 2))), of(np.ones((2, 3)))])
    with pytest.raises(DataError, match="at least one part"):
        combine([])
