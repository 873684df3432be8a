"""Shared memory: a draft holds what was written to it and takes no more memory than that."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from paramserver.wire import sharing
from paramserver.wire.sharing import Draft, Segment

SIZE = 100_000


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def _available(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param and not sharing.AVAILABLE:
        pytest.skip("this system has no anonymous memory files")
    monkeypatch.setattr(sharing, "AVAILABLE", request.param)
    return


@pytest.mark.usefixtures("_available")
@pytest.mark.parametrize("start", [0, 1_027])
def test_a_segment_holds_what_was_written_to_its_draft(start: int) -> None:
    dtype, values = np.dtype("<f4"), np.arange(SIZE, dtype=np.float32)
    draft = Draft(SIZE, dtype, start)
    for begin in range(0, 70_000, 7_000):
        assert draft.written == begin
        draft.append(values[begin : begin + 7_000])
    segment = draft.finish(owner_writes_only=True)
    assert (segment.values[:70_000] == values[:70_000]).all()
    assert not segment.values[70_000:].any()
    assert segment.sequence[0] == 0
    segment.values[:] = 1.0
    if segment.descriptor >= 0:
        other = Segment.open(os.getpid(), segment.descriptor, SIZE, dtype, start)
        assert (other.values == 1.0).all()
        with pytest.raises(ValueError, match="read-only"):
            other.values[0] = 2.0


@pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no anonymous memory files")
def test_a_draft_takes_the_memory_of_what_was_written_however_much_was_announced() -> None:
    before = _segments()
    draft = Draft(2**40, np.dtype("<f4"))
    draft.append(np.ones(SIZE, np.float32))
    (own,) = _segments() - before
    # Files of this kind take memory in pages, which may be large ones.
    assert 512 * os.fstat(own).st_blocks < 4 * SIZE + (4 << 20)
    del draft
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(own)


def _segments() -> set[int]:
    """Return the descriptors of this process's segments."""
    names = (int(name) for name in os.listdir("/proc/self/fd"))
    return {name for name in names if "memfd:paramserver" in _target(name)}


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        # That of the listing itself.
        return ""
