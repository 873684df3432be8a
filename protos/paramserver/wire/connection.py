"""A TCP connection of a worker to the port beside gRPC's, before messages go through it.

The worker connects and sends its ticket, so that the server knows whose connection it is; see `Welcome` and `Move`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

TICKET_BYTES = 16

#: How long what was sent may stay unanswered, or the other side be silent altogether, as on the stream.
DEAD_MS = 15_000

#: How long a worker tries to reach the port; behind a firewall that drops everything it then goes on with the stream.
CONNECT_S = 2.0


async def connect(host: str, port: int, ticket: bytes) -> socket.socket:
    """Return a connection that a server will know by its ticket.

    Raises:
        OSError: if there is none within `CONNECT_S`.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_S):
        for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                prepare(connection)
                await loop.sock_connect(connection, address)
                send_unpaced(connection)
                await loop.sock_sendall(connection, ticket)
                return connection
            except OSError as error:
                connection.close()
                failure = error
            except BaseException:
                connection.close()
                raise
    raise failure


def prepare(connection: socket.socket) -> None:
    """Have a connection neither wait for others nor for ever."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Other systems have other names for them, or none.
    for name, value in (("TCP_USER_TIMEOUT", DEAD_MS), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send_unpaced(connection: socket.socket) -> None:
    """Have a connection within one machine hold nothing back for a network that it does not go through.

    A system may have chosen BBR for its networks (Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016),
    which spreads over time what it sends, by timers. Within a machine nothing is lost, and Reno, which every Linux has
    and allows, sends all that the other end has room for.
    """
    if hasattr(socket, "TCP_CONGESTION") and connection.getsockname()[0] == connection.getpeername()[0]:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
