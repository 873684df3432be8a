"""What of a contribution is not finite is found wherever it is, by whichever thread."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.update import CHECKED_ALONE, Update
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout

CHUNK = 16
JOB = Job.from_dict({"task": {"use": "m"}, "data": {"source": "d"}})


@given(
    size=st.integers(1, 3 * CHECKED_ALONE * CHUNK),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=3),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    large=st.booleans(),
)
def test_the_first_chunk_that_is_not_finite_is_found(size: int, places: list[float], bad: float, large: bool) -> None:
    update = Update(JOB, Layout([("t", (size,))], "float32"), CHUNK, 1)
    # Large values are finite, though the sum of their squares is not.
    vector = np.full(size, 3e38 if large else 1.0, np.float32)
    indexes = [int(place * size) for place in places]
    vector[indexes] = bad
    expected = min(indexes) // CHUNK * CHUNK if indexes else None
    assert update.first_not_finite(vector) == expected
