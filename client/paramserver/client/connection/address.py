"""Addresses of servers as users write them."""

from __future__ import annotations

import re

from paramserver.wire.errors import RequestError

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.\-]+):(?P<port>[0-9]+)")


def check_address(address: str) -> str:
    """Return the address if it is `host:port`, `[ipv6]:port` or `unix:PATH`.

    Raises:
        RequestError: for anything else.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    match = _HOST_PORT.fullmatch(address)
    if match is None:
        raise RequestError(f"address {address!r}: allowed are 'host:port' and 'unix:PATH'")
    if not 1 <= int(match["port"]) <= 65535:
        raise RequestError(f"address {address!r}: port {match['port']} is not between 1 and 65535")
    return address
