"""The coordinator's connections to other servers, in the shape of what `paramserver.server.links` takes from gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc

from paramserver.wire.v1 import paramserver_pb2 as pb
from simulation.loop import Process
from simulation.network import Connection, Context, Listener, Network

#: How often an order finds its stream full, and waits.
FULL = 0.05


class Channel:
    """A way to one address, in the shape of `grpc.aio.Channel`."""

    def __init__(self, network: Network, address: str) -> None:
        self.network, self.address = network, address

    async def close(self) -> None:
        pass


class PartitionStub:
    """The calls to another server, in the shape of what is generated."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def Follow(self) -> Call:
        return Call(self._channel.network, self._channel.address)

    def Read(self, request: pb.ReadRequest) -> AsyncIterator[pb.ReadReply]:
        assert Process.current is not None
        return self._channel.network.call(Process.current, self._channel.address, "Read", request)


class Call:
    """A stream of orders and reports, in the shape of `grpc.aio.StreamStreamCall`."""

    def __init__(self, network: Network, address: str) -> None:
        process = Process.current
        assert process is not None
        self._network = network

        async def follow(listener: Listener, context: Context) -> None:
            await listener.follow(context)

        self._connecting: asyncio.Task[Connection] = process.loop.create_task(network.connect(process, address, follow))
        # Whoever reads or writes hears of it, if anybody still does.
        self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def write(self, order: pb.Order) -> None:
        connection = await asyncio.shield(self._connecting)
        full = self._network.rng.random() < FULL
        await asyncio.sleep(self._network.latency() if full else 0)
        if connection.client.broken:
            raise connection.client.error or asyncio.InvalidStateError("the call is over")
        connection.to_server.send(order)

    async def read(self) -> Any:
        connection = await asyncio.shield(self._connecting)
        report = await connection.client.take()
        return grpc.aio.EOF if report is None else report

    async def code(self) -> grpc.StatusCode:
        # A reader of any other end hears of it as an error.
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    def cancel(self) -> None:
        if not self._connecting.done():
            self._connecting.cancel()
        elif not self._connecting.cancelled() and self._connecting.exception() is None:
            connection = self._connecting.result()
            connection.close(connection.client)


def simulated_grpc(network: Network) -> Any:
    """Return what stands for the module `grpc`."""
    aio = SimpleNamespace(
        insecure_channel=lambda address, **_: Channel(network, address),
        EOF=grpc.aio.EOF,
        AioRpcError=grpc.aio.AioRpcError,
        Metadata=grpc.aio.Metadata,
    )
    return SimpleNamespace(aio=aio, RpcError=grpc.RpcError, StatusCode=grpc.StatusCode)
