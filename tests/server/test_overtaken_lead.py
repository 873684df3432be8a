"""A coordinator whose place was taken hears of it, though it has nothing to order."""

from __future__ import annotations

import asyncio

import pytest

from paramserver.wire.v1 import paramserver_pb2 as pb
from server.severalservers import DEADLINE_S, Call, Servers


def test_the_lead_is_taken_again_after_a_late_word_of_an_earlier_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            servers = Servers(2)
            monkeypatch.setattr("paramserver.server.coordinator.Link", servers.link)
            follower = servers._shells[1]
            try:
                while not servers.coordinator._is_open:
                    await asyncio.sleep(0.001)
                before = servers.coordinator.cluster
                # What a coordinator had sent before it died, arriving after the one that was started in its place.
                late = Call(follower)
                await late.write(pb.Order(lead=pb.Lead(protocol=1, partition=1, partitions=2, cluster=b"late")))
                assert (await late.read()).HasField("following")
                assert follower.cluster == b"late"
                late.cancel()
                while servers.coordinator.cluster == before or not servers.coordinator._is_open:
                    await asyncio.sleep(0.001)
                assert follower.cluster == servers.coordinator.cluster
            finally:
                await servers.close()

    asyncio.run(run())
