"""The consistency policies: when a shard may proceed, and whether contributions wait for their round.

This module imports no grpc, no threading and no time. A policy only answers questions; the engine does the deeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from paramserver.wire.job import TrainSection


class Decision(NamedTuple):
    """Whether something may happen, and the reason with its numbers if it may not."""

    allowed: bool
    reason: str = ""


ALLOWED = Decision(True)


class Policy(NamedTuple):
    """A consistency policy over the vector clock; `clocks[s]` is the next step expected of shard `s`."""

    name: str
    #: May `shard` pull θ and compute its next step?
    may_pull: Callable[[Sequence[int], int], Decision]
    #: True: the contributions of all shards for one step are applied together, in shard order.
    rounds: bool


def make_policy(train: TrainSection) -> Policy:
    """Return the policy that a job asks for."""
    match train.mode:
        case "sync":
            return Policy("sync", _next_round, rounds=True)
        case "ssp":
            return Policy("ssp", _bounded(train.staleness), rounds=False)
        case "async":
            return Policy("async", lambda _clocks, _shard: ALLOWED, rounds=False)


def _next_round(clocks: Sequence[int], shard: int) -> Decision:
    """Bulk synchronous: a shard starts step t when round t-1 is applied, that is, all clocks have reached t."""
    slowest = min(clocks)
    if clocks[shard] <= slowest:
        return ALLOWED
    missing = [s for s, clock in enumerate(clocks) if clock == slowest]
    return Decision(False, f"shard {shard} at step {clocks[shard]} waits: round {slowest} misses {_shards(missing)}")


def _bounded(staleness: int) -> Callable[[Sequence[int], int], Decision]:
    """Stale synchronous parallel: at most `staleness` steps ahead of the slowest shard (Ho et al. 2013, section 2)."""

    def may_pull(clocks: Sequence[int], shard: int) -> Decision:
        slowest = min(clocks)
        if clocks[shard] - slowest <= staleness:
            return ALLOWED
        return Decision(
            False,
            f"shard {shard} at step {clocks[shard]} waits: slowest shard {list(clocks).index(slowest)} is at "
            f"{slowest}, staleness bound {staleness}",
        )

    return may_pull


def _shards(shards: Sequence[int]) -> str:
    named = ", ".join(map(str, shards[:8])) + (", …" if len(shards) > 8 else "")
    return f"shard {named}" if len(shards) == 1 else f"shards {named}"
