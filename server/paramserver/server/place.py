"""Which of several servers this one is."""

from __future__ import annotations

from typing import NamedTuple

from paramserver.wire.errors import ProtocolError
from paramserver.wire.v1 import paramserver_pb2 as pb


class Place(NamedTuple):
    """The server that holds part `partition` of θ, which is cut into `partitions`; number 0 is the coordinator."""

    partition: int = 0
    partitions: int = 1

    def __str__(self) -> str:
        if self.partitions == 1:
            return "a server that holds all of θ"
        return f"partition {self.partition} of {self.partitions}"

    def check(self, join: pb.Join) -> None:
        """Refuse a worker that takes this server for another.

        Raises:
            ProtocolError: if it does.
        """
        meant = Place(join.partition, join.partitions or 1)
        if meant != self:
            raise ProtocolError(
                f"this is {self}, the worker takes it for {meant}; "
                "name all servers, the coordinator first and the others in its order: --server ADDR,ADDR…"
            )


#: The place of a server that is alone.
ALONE = Place()
