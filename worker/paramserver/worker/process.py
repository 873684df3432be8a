"""The worker process: finds its server, works, comes back when the connection breaks, leaves when told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Sequence

import grpc
from threadpoolctl import threadpool_limits

from paramserver.wire.errors import Busy, PeerGone, ProtocolError, Unreachable, from_rpc_error
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.stream import Stream
from paramserver.worker.trainer import Trainer

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
#: A server that was started again is to be noticed soon: nothing is computed until then.
LONGEST_BACKOFF_S = 1.0

#: How long the server has to end the stream after the worker said that it leaves.
LEAVE_S = 1.0


async def work_until_signalled(addresses: Sequence[str], trainer: Trainer, patience_s: float) -> None:
    """Be a worker process: work for the server at an address until SIGTERM or SIGINT.

    Of several servers that share θ, `addresses` names all, the coordinator first.

    Linear algebra runs on one thread: the order of its sums, and with it the bits, must not depend on the machine's
    load or cores.

    Raises:
        Unreachable: if no server answers for `patience_s` seconds.
        ProtocolError: if the server speaks another protocol.
    """
    working = asyncio.current_task()
    assert working is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.cancel)
    with threadpool_limits(limits=1):
        await work(addresses, trainer, patience_s)


async def work(addresses: Sequence[str], trainer: Trainer, patience_s: float) -> None:
    """Work until the task is cancelled; then hand the leases back and return.

    Raises:
        Unreachable: if no server answers for `patience_s` seconds.
        Busy: if another worker has the name for so long.
        ProtocolError: if the server speaks another protocol.
    """
    with contextlib.suppress(asyncio.CancelledError):
        await _work_and_reconnect(addresses, trainer, patience_s)


async def _work_and_reconnect(addresses: Sequence[str], trainer: Trainer, patience_s: float) -> None:
    backoff_s, alone_since = FIRST_BACKOFF_S, time.monotonic()
    address = ",".join(addresses)
    while True:
        # Its own process before it may have died a moment ago, so a name that is taken is tried again too.
        taken: Busy | None = None
        async with contextlib.AsyncExitStack() as stack:
            stream, *others = [await stack.enter_async_context(Stream(address)) for address in addresses]
            try:
                await trainer.follow(stream, others)
                reason = "the server ended the stream"
            except grpc.RpcError as error:
                cause = from_rpc_error(error, address)
                if isinstance(cause, ProtocolError):
                    raise cause from None
                reason, taken = str(cause), cause if isinstance(cause, Busy) else None
            except (PeerGone, Unreachable) as error:
                reason = str(error)
            except asyncio.CancelledError:
                await _leave(stream)
                raise
        now = time.monotonic()
        if trainer.joined:
            backoff_s, alone_since = FIRST_BACKOFF_S, now
        if now - alone_since > patience_s:
            if taken is not None:
                raise taken
            raise Unreachable(f"no server answers at {address} for {patience_s:g} s: {reason}")
        # Jitter keeps a crowd of workers from coming back all at once.
        delay = backoff_s * random.uniform(0.5, 1.0)
        log.warning("%s; trying again in %.1f s", reason, delay)
        await asyncio.sleep(delay)
        backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)


async def _leave(stream: Stream) -> None:
    """Hand the leases back, so that nobody has to wait for them to end."""
    with contextlib.suppress(grpc.RpcError, asyncio.TimeoutError, ProtocolError):
        async with asyncio.timeout(LEAVE_S):
            await stream.send(pb.WorkerMessage(leave=pb.Leave(reason="it was told to stop")))
            while await stream.receive() is not None:
                pass


def exit_now(status: int) -> None:
    """End the process without waiting for a step that is still being computed in a thread."""
    logging.shutdown()
    os._exit(status)
