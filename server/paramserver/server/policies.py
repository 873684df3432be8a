"""The consistency policies: when a shard may proceed, which contributions count, and whether they wait for their round.

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
    #: So many steps a shard may be ahead of the slowest when it pulls θ for its next; None: any number.
    lead: int | None
    #: May a contribution of `shard` count that is `delay` versions old?
    may_count: Callable[[int, int], Decision]
    #: True: the contributions of the shards for one step are applied together, in shard order.
    rounds: bool
    #: With rounds: so many contributions close one; what comes later is superseded. 0: those of all shards.
    quorum: int = 0


def make_policy(train: TrainSection) -> Policy:
    """Return the policy that a job asks for.

    sync: rounds of all shards (Valiant, "A Bridging Model for Parallel Computation", 1990). Warning: as slow as the
    slowest shard. With a quorum the shards beyond it are backups
    (Chen et al., "Revisiting Distributed Synchronous SGD", 2016). Warning: who counts is a matter of timing, and a
    shard that is always late hardly ever counts, which biases θ where shards differ.

    ssp: stale synchronous parallel (Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel
    Parameter Server", 2013, section 2). Warning: a worker that is slow for good slows all others down to its pace.

    async: every contribution at once (Dean et al., "Large Scale Distributed Deep Networks", 2012, section 4.1), or none
    older than `max_delay`. Warning: old gradients call for smaller rates, and a bound below its usual delay keeps a
    shard from counting at all.
    """
    match train.mode:
        case "sync":
            return Policy("sync", 0, _whatever_its_delay, rounds=True, quorum=train.quorum)
        case "ssp":
            return Policy("ssp", train.staleness, _no_older_than(train.max_delay), rounds=False)
        case "async":
            return Policy("async", None, _no_older_than(train.max_delay), rounds=False)


def why_it_waits(policy: Policy, clocks: Sequence[int], shard: int) -> str:
    """Say why a shard may not pull yet, with the numbers; empty if it may."""
    slowest = min(clocks)
    if policy.lead is None or clocks[shard] - slowest <= policy.lead:
        return ""
    if policy.rounds:
        missing = [s for s, clock in enumerate(clocks) if clock == slowest]
        return f"shard {shard} at step {clocks[shard]} waits: round {slowest} misses {_shards(missing)}"
    return (
        f"shard {shard} at step {clocks[shard]} waits: slowest shard {list(clocks).index(slowest)} is at "
        f"{slowest}, staleness bound {policy.lead}"
    )


def _whatever_its_delay(_shard: int, _delay: int) -> Decision:
    return ALLOWED


def _no_older_than(max_delay: int) -> Callable[[int, int], Decision]:
    """Refuse a contribution that θ has moved away from; 0 is no bound.

    Source: Maranjyan, Tyurin & Richtárik, "Ringmaster ASGD", 2025, algorithm 4 (with a threshold of max_delay + 1).
    """
    if not max_delay:
        return _whatever_its_delay

    def may_count(shard: int, delay: int) -> Decision:
        if delay <= max_delay:
            return ALLOWED
        return Decision(
            False,
            f"the contribution of shard {shard} is {delay} versions old, max_delay is {max_delay}: compute it again",
        )

    return may_count


def _shards(shards: Sequence[int]) -> str:
    named = ", ".join(map(str, shards[:8])) + (", …" if len(shards) > 8 else "")
    return f"shard {named}" if len(shards) == 1 else f"shards {named}"
