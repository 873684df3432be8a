"""What the coordinator of several servers waits for, and what it no longer waits for."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from paramserver.server import events as ev
from paramserver.server.leading import LeadingRun
from paramserver.server.session import Arrived
from paramserver.wire.errors import NotReady
from paramserver.wire.job import Job
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb

JOB = Job.from_dict({"task": {"use": "t"}, "data": {"source": "d"}, "server": {"partitions": 2}})


def test_the_first_theta_of_a_worker_that_died_does_not_hold_up_the_next_one_of_its_name() -> None:
    links: list[Any] = [object()]

    async def run() -> list[str]:
        job = LeadingRun("j", JOB, {}, lambda: 0.0, 0, links, lambda: None)
        handled: list[str] = []

        async def handle(event: ev.Event) -> None:
            handled.append(type(event).__name__)

        job._handle = handle  # type: ignore[method-assign]
        working = asyncio.create_task(job.work())
        # It is in here, and not on the other server.
        job.feed(ev.Initialised("w0", 0, 1))
        job.feed(ev.Left("w0", "it was killed"))
        await job._carry_out_everywhere(ev.Revoke("w0", 0, 1, "it was killed"))
        job.feed(ev.Joined("w0", None, frozenset()))
        job.feed(ev.Pulled("w0"))
        await job.quiet()
        working.cancel()
        return handled

    assert asyncio.run(run()) == ["Left", "Joined", "Pulled"]


def test_where_a_contribution_lay_that_never_counted_is_forgotten_with_the_next_one() -> None:
    async def run() -> list[bool]:
        job = LeadingRun("j", JOB, {}, lambda: 0.0, 0, [], lambda: None)
        job._carry_out = lambda _effect: None  # type: ignore[method-assign]
        slot = Segment.create(1, np.dtype(np.float32))
        found = []
        for sights in ([slot], [slot, None]):
            for sight in sights:
                job._arrived[0, 3] = Arrived([], sight is not None, sight)
                await job._carry_out_everywhere(ev.Keep(0, 3))
            counted = pb.Counted()
            job._show(counted)
            found.append(counted.in_sight)
        return found

    assert asyncio.run(run()) == [True, False]


def test_a_job_that_makes_room_for_the_next_orders_nothing_more() -> None:
    async def run() -> None:
        links: list[Any] = [object()]
        job = LeadingRun("j", JOB, {}, lambda: 0.0, 0, links, lambda: None)
        order = asyncio.Event()

        async def ordered() -> None:
            order.set()

        room = asyncio.create_task(job.make_room())
        await asyncio.sleep(0)
        # It comes before the room is made, and would be ordered after it.
        asked = asyncio.create_task(job.between(ordered))
        await asyncio.sleep(0)
        working = asyncio.create_task(job.work())
        await room
        with pytest.raises(NotReady, match="job j has made room"):
            await asked
        with pytest.raises(NotReady, match="job j has made room"):
            await job.quiet()
        working.cancel()
        assert not order.is_set()

    asyncio.run(run())
