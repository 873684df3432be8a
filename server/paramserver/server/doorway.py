"""The TCP port beside gRPC's, where workers of other machines connect for their messages.

gRPC begins and ends the conversation; what goes between goes faster through a connection of its own (`wire.line`).
Whoever connects has to show a ticket that a worker was given on its stream, once; everybody else is turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from typing import Any, Self

from paramserver.wire.connection import TICKET_BYTES, prepare, send_unpaced
from paramserver.wire.errors import RequestError

#: How long whoever connects has to show a ticket, and a worker that says it has connected to be found at the door.
WAIT_S = 2.0

#: So many may be at the door; others wait in the system's queue.
CROWD = 64


class Doorway:
    """Gives tickets out and hands over the connections of those who show one; belongs to the event loop."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._expected: dict[bytes, asyncio.Future[socket.socket]] = {}
        self._room = asyncio.Semaphore(CROWD)
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def open(cls, host: str, port: int) -> Self:
        """Listen at a port of the host, any free one if it is 0; `open` and `close` go with a running event loop.

        Raises:
            RequestError: if it cannot be had.
        """
        try:
            infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = infos[0]
            both = family is socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=both)
        except OSError as error:
            raise RequestError(f"cannot listen for tensors on {host}:{port}: {error.strerror or error}") from None
        listener.setblocking(False)
        doorway = cls(listener)
        doorway._start(doorway._receive())
        return doorway

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def issue(self) -> bytes:
        """Return a new ticket."""
        ticket = os.urandom(TICKET_BYTES)
        self._expected[ticket] = asyncio.get_running_loop().create_future()
        return ticket

    async def admit(self, ticket: bytes) -> socket.socket | None:
        """Return the connection on which a ticket, issued and not revoked, was shown, or is within a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                connection = await self._expected[ticket]
            del self._expected[ticket]
            return connection
        return None

    def revoke(self, ticket: bytes) -> None:
        """Forget a ticket; a connection that was not handed over is closed."""
        shown = self._expected.pop(ticket, None)
        if shown is not None and shown.done() and not shown.cancelled():
            shown.result().close()

    def close(self) -> None:
        """Let nobody in any more."""
        for task in self._tasks:
            task.cancel()
        self._listener.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:
                # Out of descriptors, or whoever came is gone again.
                self._room.release()
                await asyncio.sleep(0.1)
                continue
            self._start(self._look_at(connection))

    async def _look_at(self, connection: socket.socket) -> None:
        """Hand a connection over if it shows a ticket in time."""
        try:
            prepare(connection)
            send_unpaced(connection)
            ticket = b""
            async with asyncio.timeout(WAIT_S):
                while len(ticket) < TICKET_BYTES:
                    data = await asyncio.get_running_loop().sock_recv(connection, TICKET_BYTES - len(ticket))
                    if not data:
                        raise ConnectionError
                    ticket += data
            shown = self._expected.get(ticket)
            if shown is not None and not shown.done():
                shown.set_result(connection)
                return
        except (OSError, TimeoutError):
            pass
        except BaseException:
            connection.close()
            raise
        finally:
            self._room.release()
        connection.close()
