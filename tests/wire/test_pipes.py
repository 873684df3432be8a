"""Only pipes that are there and are pipes are opened, and no descriptor is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paramserver.wire import sharing
from paramserver.wire.errors import PeerGone, ProtocolError
from paramserver.wire.pipes import PipePair, open_pipes

pytestmark = pytest.mark.skipif(not sharing.AVAILABLE, reason="this system has no /proc to find pipes in")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_only_pipes_that_are_there_are_opened(tmp_path: Path) -> None:
    before = descriptors()
    pair = PipePair()
    with (tmp_path / "file").open("w+b") as file, pytest.raises(ProtocolError, match=r"descriptor \d+ .* is no pipe"):
        open_pipes(os.getpid(), pair.up, file.fileno())
    with pytest.raises(PeerGone, match="no pipe 7 of process 4194305"):
        open_pipes(2**22 + 1, 7, pair.down)
    pair.close()
    assert descriptors() == before
