"""Connections within one machine are not paced; others keep what the system has chosen for its networks."""

from __future__ import annotations

import asyncio
import socket

import pytest

from paramserver.server.doorway import Doorway
from paramserver.wire.connection import connect, send_unpaced

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="not on this system")


def algorithm(connection: socket.socket) -> str:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def others() -> list[str]:
    """Return algorithms besides Reno that this process may choose."""
    with open("/proc/sys/net/ipv4/tcp_allowed_congestion_control", encoding="ascii") as allowed:
        return [name for name in allowed.read().split() if name != "reno"]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_within_a_machine_are_not_paced(host: str) -> None:
    async def meet() -> list[str]:
        doorway = Doorway.open(host, 0)
        ticket = doorway.issue()
        outgoing = await connect(host, doorway.port, ticket)
        incoming = await doorway.admit(ticket)
        assert incoming is not None
        with outgoing, incoming:
            found = [algorithm(outgoing), algorithm(incoming)]
        doorway.close()
        return found

    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6")
    assert asyncio.run(meet()) == ["reno", "reno"]


def test_where_the_ends_have_different_addresses_the_system_chooses() -> None:
    if not others():
        pytest.skip("Reno is all there is")
    with socket.create_server(("127.0.0.2", 0)) as listener, socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        connection.connect(listener.getsockname())
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, others()[0].encode())
        send_unpaced(connection)
        assert algorithm(connection) == others()[0]
