"""A process between workers and a server that loses or repeats messages when told to; for `paramserver chaos`.

`python -m paramserver.client.proxy --server ADDR --seed N --address-file PATH`. At SIGUSR1 the next push or work is
lost, and its stream with it, since a stream loses nothing in the middle; at SIGUSR2 the next one arrives twice. The
seed chooses which of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
from collections import deque
from pathlib import Path
from typing import Any

import grpc

from paramserver.wire.memory import keep_freed_memory
from paramserver.wire.v1 import paramserver_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Training"].full_name

#: What tells the proxy to lose or to repeat a message.
LOSE, REPEAT = signal.SIGUSR1, signal.SIGUSR2

OPTIONS = (("grpc.max_receive_message_length", 16 << 20), ("grpc.so_reuseport", 0))

Context = grpc.aio.ServicerContext[Any, Any]


class Lost(Exception):
    """A message was lost, so its stream ends."""


class Faults:
    """The faults that were asked for and have yet to happen, in one queue per direction."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._due: dict[str, deque[signal.Signals]] = {"up": deque(), "down": deque()}

    def ask(self, kind: signal.Signals) -> None:
        """Have one of the next messages suffer."""
        self._due[self._chance.choice(["up", "down"])].append(kind)

    def copies(self, direction: str, data: bytes) -> int:
        """Return how often a message is to be passed on.

        Raises:
            Lost: if it is lost.
        """
        due = self._due[direction]
        if not due or not _matters(direction, data):
            return 1
        kind = due.popleft()
        print(f"{'lose' if kind is LOSE else 'repeat'} a message {direction}", flush=True)
        if kind is LOSE:
            raise Lost
        return 2


def _matters(direction: str, data: bytes) -> bool:
    """Say whether a message is one that the training hangs on, not a greeting or a heartbeat."""
    if direction == "up":
        message = pb.WorkerMessage.FromString(data)
        return any(message.HasField(kind) for kind in ("push", "pushes", "pull", "pull_rows", "push_rows"))
    message_down = pb.ServerMessage.FromString(data)
    return message_down.HasField("work") or message_down.HasField("rows")


def _without_other_ways(data: bytes) -> bytes:
    """Return a message from the server such that messages go on passing through here."""
    message = pb.ServerMessage.FromString(data)
    if not message.HasField("welcome"):
        return data
    message.welcome.takes_pipes, message.welcome.port = False, 0
    return message.SerializeToString()


class Proxy:
    """Passes every training stream on to a stream of its own to the server."""

    def __init__(self, server: str, faults: Faults) -> None:
        self._server = server
        self._faults = faults

    async def train(self, _requests: Any, context: Context) -> None:
        """Serve one stream until either end breaks it."""
        async with grpc.aio.insecure_channel(self._server, options=OPTIONS) as channel:
            call: Any = channel.stream_stream(f"/{SERVICE}/Train")()
            pumps = [asyncio.create_task(self._up(context, call)), asyncio.create_task(self._down(call, context))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                ended = call.done()
                call.cancel()
            if ended and await call.code() is grpc.StatusCode.OK:
                return
            code = await call.code() if ended else grpc.StatusCode.UNAVAILABLE
            details = await call.details() if ended else "the connection broke"
            await context.abort(code, details)

    async def _up(self, context: Context, call: Any) -> None:
        with contextlib.suppress(Lost, grpc.RpcError, asyncio.InvalidStateError):
            while (data := await context.read()) is not grpc.aio.EOF:
                for _ in range(self._faults.copies("up", data)):
                    await call.write(data)

    async def _down(self, call: Any, context: Context) -> None:
        with contextlib.suppress(Lost, grpc.RpcError, asyncio.InvalidStateError):
            while (data := await call.read()) is not grpc.aio.EOF:
                data = _without_other_ways(data)
                for _ in range(self._faults.copies("down", data)):
                    await context.write(data)


async def _serve(server: str, seed: int, address_file: Path) -> None:
    faults = Faults(seed)
    for number in (LOSE, REPEAT):
        asyncio.get_running_loop().add_signal_handler(number, faults.ask, number)
    proxy = grpc.aio.server(options=OPTIONS)
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(Proxy(server, faults).train)
    proxy.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Train": handler}),))
    port = proxy.add_insecure_port("127.0.0.1:0")
    await proxy.start()
    partial = address_file.with_name(address_file.name + ".partial")
    partial.write_text(f"127.0.0.1:{port}", encoding="utf-8")
    os.replace(partial, address_file)
    await proxy.wait_for_termination()


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, metavar="ADDR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--address-file", type=Path, required=True, metavar="PATH")
    arguments = parser.parse_args()
    keep_freed_memory()
    asyncio.run(_serve(arguments.server, arguments.seed, arguments.address_file))


if __name__ == "__main__":
    main()
