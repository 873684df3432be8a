"""Calls that outlast a server which goes away and comes back, and that never wait for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import grpc

from paramserver.wire.errors import ParamserverError, Unreachable, from_rpc_error

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

#: gRPC itself waits up to two minutes between attempts to connect; a server that restarts is back much sooner.
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 250),
    # A job with tens of thousands of shards has a long status; parameters travel in chunks anyway.
    ("grpc.max_receive_message_length", -1),
    # A proxy for web pages cannot carry this traffic, and a variable of the shell must not divert it.
    ("grpc.enable_http_proxy", 0),
]

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5


class Call(Protocol[T_co]):
    """A streaming call under way."""

    def __next__(self) -> T_co:
        """Wait for the next reply."""

    def cancel(self) -> Any:
        """End the call from any thread."""


class Patience:
    """How long an absent server is waited for, and the pauses between attempts.

    Args:
        address: the server, for messages.
        timeout_s: seconds without a sign of life after which the server counts as unreachable.
        check: called before each pause; raises if waiting has become pointless.
    """

    def __init__(self, address: str, timeout_s: float, check: Callable[[], None] | None = None) -> None:
        self._address = address
        self.timeout_s = timeout_s
        self._check = check
        self.reset()

    def reset(self, timeout_s: float | None = None) -> None:
        """Note a sign of life; from now on `timeout_s` holds, if given."""
        self.timeout_s = self.timeout_s if timeout_s is None else timeout_s
        self._deadline = time.monotonic() + self.timeout_s
        self._pause_s = _FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        """Seconds until the server counts as unreachable; never quite 0, since gRPC takes 0 as already over."""
        return max(self._deadline - time.monotonic(), 0.001)

    def endure(self, failure: grpc.RpcError) -> None:
        """Pause after a failed attempt if another one makes sense.

        Raises:
            ParamserverError: the meaning of the failure, if the server did answer or the time is over.
        """
        error = translated(failure, self._address)
        if not isinstance(error, Unreachable):
            raise error from None
        if self._check is not None:
            self._check()
        if time.monotonic() >= self._deadline:
            reason = "" if _is_timeout(failure) else f": {_details(failure)}"
            raise Unreachable(f"no server answers at {self._address} within {self.timeout_s:g} s{reason}") from None
        self.rest()

    def rest(self) -> None:
        """Pause before the next attempt, longer each time; jitter keeps clients from coming back all at once."""
        time.sleep(min(self._pause_s * random.uniform(0.5, 1.0), self.left_s))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def translated(failure: grpc.RpcError, address: str) -> ParamserverError:
    """Return the paramserver error for a failed call; a call that broke off counts as an unreachable server."""
    if failure.code() is grpc.StatusCode.CANCELLED:
        return Unreachable(f"the call to {address} broke off: {_details(failure)}")
    return from_rpc_error(failure, address)


def persist(attempt: Callable[[float], T], patience: Patience) -> T:
    """Repeat a call that is safe to repeat until the server answers; `attempt` is given the seconds left.

    Raises:
        Unreachable: if it did not answer in time.
        ParamserverError: if it answered with an error.
    """
    while True:
        try:
            return attempt(patience.left_s)
        except grpc.RpcError as failure:
            patience.endure(failure)


def replies(call: Call[T], silence_s: float) -> Iterator[T]:
    """Yield the replies of a streaming call, which is cancelled once no reply came for `silence_s` seconds.

    gRPC bounds a stream as a whole only, which says nothing about a peer that has stopped talking.

    Raises:
        grpc.RpcError: as the call ends; CANCELLED after silence.
    """
    try:
        while True:
            guard = threading.Timer(silence_s, call.cancel)
            guard.daemon = True
            guard.start()
            try:
                reply = next(call)
            except StopIteration:
                return
            finally:
                guard.cancel()
            yield reply
    finally:
        call.cancel()


def _is_timeout(failure: grpc.RpcError) -> bool:
    return failure.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def _details(failure: grpc.RpcError) -> str:
    return failure.details() or failure.code().name
