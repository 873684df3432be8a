"""Ranges of one vector in the memory of several segments look like the vector."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire import mosaic
from paramserver.wire.errors import ProtocolError
from paramserver.wire.mosaic import Mosaic
from paramserver.wire.sharing import Segment

pytestmark = pytest.mark.skipif(not mosaic.AVAILABLE, reason="pages of this machine are not of 4096 bytes")


@given(cuts=st.sets(st.integers(1, 4999), max_size=5), dtype=st.sampled_from(["<f4", "<f8"]), data=st.data())
def test_it_shows_what_the_segments_hold_now(cuts: set[int], dtype: str, data: st.DataObject) -> None:
    size, kind = 5000, np.dtype(dtype)
    places = list(itertools.pairwise([0, *sorted(cuts), size]))
    segments = [Segment.create(stop - start, kind, start=start) for start, stop in places]
    shown = Mosaic(size, kind)
    for index in data.draw(st.permutations(range(len(places)))):
        start, stop = places[index]
        shown.lay(start, stop - start, os.getpid(), segments[index].descriptor)
    for seed in (0, 1):
        whole = np.random.default_rng(seed).random(size).astype(kind)
        for (start, stop), segment in zip(places, segments, strict=True):
            segment.values[:] = whole[start:stop]
        shown.settle()
        assert shown.values.tobytes() == whole.tobytes()


def test_what_is_within_pages_is_not_copied() -> None:
    kind = np.dtype("<f4")
    segment = Segment.create(4096, kind, start=1000)
    shown = Mosaic(1000 + 4096, kind)
    shown.lay(1000, 4096, os.getpid(), segment.descriptor)
    segment.values[:] = 1
    # Pages have 1024 elements: the range has parts of two and three whole ones.
    assert shown.values[1024:4096].tolist() == [1] * 3072
    assert not shown.values[:1024].any()
    assert not shown.values[4096:].any()


def test_a_segment_that_is_too_short_is_refused() -> None:
    segment = Segment.create(10, np.dtype("<f4"))
    with pytest.raises(ProtocolError, match="short or not sealed"):
        Mosaic(5000, np.dtype("<f4")).lay(0, 5000, os.getpid(), segment.descriptor)
