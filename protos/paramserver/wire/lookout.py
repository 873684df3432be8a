"""Waiting awake on many lines at once, for the little time in which others say what they also have to say."""

from __future__ import annotations

import select
from typing import Protocol

from paramserver.wire.awake import Awake

#: The next message is waited for so long, and others may have the core for so long.
NEXT_S = 1e-4


class Listener(Protocol):
    """A line as the look-out knows it."""

    #: Whether the message that came last, or is on its way, is a large one.
    was_large: bool

    def read(self) -> None:
        """Take what has come."""


class Lookout:
    """Waits awake for small messages on any of its lines, until something is said on one, or nothing comes soon.

    This is for who gathers what several say before it answers all: nobody has to wake it then, which takes its sender
    as long as the rest of a small message. While much is on its way, all cores have work.
    """

    def __init__(self) -> None:
        self._lines: dict[int, Listener] = {}
        self._awake = Awake(NEXT_S, NEXT_S)
        #: Open while there are lines.
        self._epoll: select.epoll | None = None
        #: Nothing more is waited for awake.
        self._is_enough = False

    def add(self, descriptor: int, line: Listener) -> None:
        """Have a line looked at, which reads from this descriptor."""
        if self._epoll is None:
            self._epoll = select.epoll()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._lines[descriptor] = line

    def remove(self, descriptor: int) -> None:
        """Look at a line no more, before its descriptor is closed; one that is not looked at is passed over."""
        if self._lines.pop(descriptor, None) is None or self._epoll is None:
            return
        self._epoll.unregister(descriptor)
        if not self._lines:
            self._epoll.close()
            self._epoll = None

    def spoke(self) -> None:
        """Take note that something is said on a line: whoever hears it wants the core."""
        self._is_enough = True

    def listen(self, line: Listener) -> None:
        """Have a line read what has come there, and then, unless something is said, all what comes soon."""
        self._is_enough = False
        self._read_from(line)
        # One message of each, so that everything else has its turn.
        for _ in range(len(self._lines) - 1):
            if self._is_enough or not self._awake.finds(self._read):
                return

    def _read_from(self, line: Listener) -> None:
        line.read()
        if line.was_large:
            self._is_enough = True

    def _read(self) -> bool:
        """Read what has come on any line; False if nothing has."""
        ready = [] if self._epoll is None else self._epoll.poll(0)
        for descriptor, _ in ready:
            line = self._lines.get(descriptor)
            if line is not None:
                self._read_from(line)
        return bool(ready)
