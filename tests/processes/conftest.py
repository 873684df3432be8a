"""Every test with processes ends them and checks that none, and no port, is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from processes.cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Processes for one test."""
    found = Cluster(tmp_path)
    yield found
    found.end()
