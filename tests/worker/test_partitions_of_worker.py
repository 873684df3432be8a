"""The streams to the servers beside the coordinator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from paramserver.wire.errors import ProtocolError
from paramserver.wire.layout import Array
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.partitions import Partitions


class Refusing:
    """A stream to a server that takes nobody, so many turns of the event loop after it was asked."""

    def __init__(self, address: str, turns: int, asked: list[pb.Join]) -> None:
        self.address = address
        self._turns = turns
        self._asked = asked

    async def send(self, message: pb.WorkerMessage, _payload: Array | None = None) -> None:
        self._asked.append(message.join)

    async def receive(self) -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        raise ProtocolError(f"{self.address} refuses")


@pytest.mark.parametrize("turns", [(0, 5, 2), (5, 0, 2), (9, 3, 0)])
def test_of_several_servers_that_refuse_a_worker_the_first_in_the_list_is_heard(turns: tuple[int, ...]) -> None:
    asked: list[pb.Join] = []
    streams: list[Any] = [Refusing(f"server {n}", t, asked) for n, t in enumerate(turns, start=1)]
    with pytest.raises(ProtocolError, match="server 1 refuses"):
        asyncio.run(Partitions(streams).join(pb.Join(worker="w")))
    assert [(join.partition, join.partitions) for join in asked] == [(1, 4), (2, 4), (3, 4)]
