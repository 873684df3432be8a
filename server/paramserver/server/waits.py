"""Whom the job waits for, since when, and what happens next, with the numbers.

This module imports no grpc, no threading, no time and no random.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramserver.server.leases import Leases
from paramserver.server.pace import Pace


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody that the job waits for; `reason` tells all of it in one sentence."""

    shard: int
    #: Empty if nobody holds the shard.
    worker: str
    since_s: float
    reason: str
    #: Since the worker's last sign of life; None without a worker.
    heard_s: float | None
    #: What happens if nothing is heard or pushed, and in how many seconds; None if nothing will by itself.
    then: str
    due_s: float | None


def explain(leases: Leases, pace: Pace, shard: int, what: str, absent_s: float, now: float) -> Wait:
    """Explain why `what` of a shard is not there yet; a shard fails the job after `absent_s` without a worker."""
    state = leases.shards[shard]
    since_s = now - state.since if state.since else 0.0
    if state.holder is None:
        then = "the job fails if none does"
        due_s = max(0.0, absent_s - since_s) if absent_s else None
        if due_s is None:
            then = "it waits for as long as it takes"
        reason = f"{what} of shard {shard} waits for {whom(leases, shard)}; {then}{_in(due_s)}"
        return Wait(shard, "", since_s, reason, None, then, due_s)
    worker = leases.workers[state.holder]
    heard_s = now - worker.last_seen
    doing = ""
    if not worker.parked and worker.assigned:
        doing = f" and computing for {now - worker.granted:.1f} s"
        if pace.step_s == pace.step_s:
            doing += f" where a step takes {pace.step_s:.2g} s"
    then, due_s = "no other worker can take it over", None
    if heard_s > worker.heartbeat_s:
        then, due_s = "its lease ends if it stays silent", max(0.0, pace.silence_s(worker) - heard_s)
    elif any(not pace.is_overdue(leases.workers[n], now) for n in leases.takers(shard) if n != state.holder):
        then = "another worker takes the shard over if it pushes nothing"
        due_s = max(0.0, pace.turn_s(worker) - (now - worker.granted)) if not worker.parked else None
    reason = (
        f"{what} of shard {shard} waits for worker {state.holder}, heard of {heard_s:.1f} s ago{doing}; "
        f"{then}{_in(due_s)}"
    )
    return Wait(shard, state.holder, since_s, reason, heard_s, then, due_s)


def whom(leases: Leases, shard: int) -> str:
    """Say for whom a shard waits that nobody holds."""
    pinned_to = leases.shards[shard].pinned_to
    who = "a worker to join" if pinned_to is None else f"worker {pinned_to}, to which it is pinned, to join"
    failed = [f"{n} failed: {w.failure}" for n, w in leases.workers.items() if w.failure and leases.may_read(n, shard)]
    return f"{who} (worker {failed[0]})" if failed else who


def _in(due_s: float | None) -> str:
    return "" if due_s is None else f", in {due_s:.1f} s"
