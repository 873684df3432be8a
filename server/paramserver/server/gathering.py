"""Which contributions are in on which servers: what counts is only what all of them have.

This module imports no grpc, no threading, no time and no random.
"""

from __future__ import annotations

from typing import NamedTuple

from paramserver.server.events import Contribution


class Name(NamedTuple):
    """What two computations of a step differ in if they can differ in their values."""

    shard: int
    epoch: int
    step: int
    version: int

    @classmethod
    def of(cls, c: Contribution) -> Name:
        """Return the name of a contribution."""
        return cls(c.shard, c.epoch, c.step, c.version)


class Gathering:
    """Contributions that are on their way to `partitions` servers, number 0 being this one."""

    def __init__(self, partitions: int) -> None:
        self._all = frozenset(range(partitions))
        #: What each server has told with it.
        self._where: dict[Name, dict[int, bytes]] = {}
        #: Those that are whole on this server. Disjoint from what was returned as whole everywhere.
        self._here: dict[Name, Contribution] = {}
        #: Given out as whole everywhere, and not decided on yet: a copy that comes late is none of our business.
        self._given: dict[Name, list[bytes]] = {}

    def arrived(self, contribution: Contribution, told: bytes = b"", in_sight: bool = False) -> Contribution | None:
        """Note that a contribution is whole here, and what is in sight of all with it everywhere; return it if it now
        is."""
        name = Name.of(contribution)
        if name not in self._given:
            self._here[name] = contribution
            if in_sight:
                self._where[name] = dict.fromkeys(self._all - {0}, b"")
        return self._note(name, 0, told)

    def reported(self, name: Name, partition: int, told: bytes = b"") -> Contribution | None:
        """Note that it is whole on another server; return it if it now is everywhere."""
        return self._note(name, partition, told)

    def is_here(self, name: Name) -> bool:
        """Say whether it is whole on this server and not yet everywhere."""
        return name in self._here

    def is_given(self, name: Name) -> bool:
        """Say whether it was returned as whole everywhere, and is not decided on yet."""
        return name in self._given

    def told(self, contribution: Contribution) -> list[bytes]:
        """Return what the servers, in their order, told with a contribution that is to be decided on."""
        return self._given[Name.of(contribution)]

    def decided(self, contribution: Contribution) -> None:
        """Note that it has counted or not; if not, it may come once more."""
        self._given.pop(Name.of(contribution), None)

    def is_waited_for(self, worker: str) -> bool:
        """Say whether something of the worker is here and not yet everywhere."""
        return any(c.worker == worker for c in self._here.values())

    def forget(self, shard: int, epoch: int, step: int | None = None) -> None:
        """Drop what a shard was computed under leases up to this epoch, or one step of it."""
        for name in [n for n in self._where if n.shard == shard and n.epoch <= epoch and step in (None, n.step)]:
            del self._where[name]
            self._here.pop(name, None)

    def _note(self, name: Name, partition: int, told: bytes) -> Contribution | None:
        if name in self._given:
            return None
        where = self._where.setdefault(name, {})
        where[partition] = told
        if where.keys() != self._all:
            return None
        found = self._here[name]
        self._given[name] = [where[partition] for partition in sorted(where)]
        # What was computed for the shard before this will not be asked for again.
        for older in [n for n in self._where if n.shard == name.shard and n.step <= name.step]:
            del self._where[older]
            self._here.pop(older, None)
        return found
