"""Where a shard's last contribution lies is known for as long as it lies there."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.wire.layout import Layout
from paramserver.worker.outgoing import Outgoing


class Theta:
    """All that is asked of a replica."""

    layout = Layout.of({"w": np.zeros(5)}, "float64")

    def __init__(self, shares_memory: bool) -> None:
        self.shares_memory = shares_memory


@pytest.mark.parametrize("shares_memory", [False, True])
def test_the_last_contribution_of_a_shard_is_found(shares_memory: bool) -> None:
    outgoing = Outgoing(Theta(shares_memory))  # type: ignore[arg-type]
    outgoing.rows(2)
    assert outgoing.last(0) is None
    first, second = outgoing.place(7, 0)[0], outgoing.place(0, 1)[0]
    assert outgoing.last(7) is first
    assert outgoing.last(0) is second


def test_what_was_overwritten_is_nobodys_and_the_newest_place_counts() -> None:
    outgoing = Outgoing(Theta(False))  # type: ignore[arg-type]
    outgoing.rows(2)
    outgoing.place(3, 0)
    outgoing.place(4, 1)
    newest = outgoing.place(4, 0)[0]
    assert outgoing.last(3) is None
    assert outgoing.last(4) is newest
    outgoing.place(5, 0)
    # It lies in the other row too, but not as it was pushed last.
    assert outgoing.last(4) is None


def test_more_rows_are_other_places() -> None:
    outgoing = Outgoing(Theta(False))  # type: ignore[arg-type]
    outgoing.place(0, 0)
    outgoing.rows(3)
    assert outgoing.last(0) is None
