"""Elastic averaging on the server's side: every shard has parameters of its own, and θ is the centre among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from paramserver.server.events import Contribution
from paramserver.server.reduction import Terms
from paramserver.wire.layout import Array

#: What the name of a shard's parameters begins with among the arrays of a snapshot.
PREFIX = "own-"


class Elastic:
    """The parameters that each shard pushed last, and how far θ is from them.

    A contribution holds the shard's own parameters x times its samples. What the optimizer takes for their gradient is
    θ − x at the moment of the update, so that a rate of α moves θ by α · (x − θ).

    x is kept until the shard's next contribution counts: it is all that a worker needs to go on where another died.

    Source: Zhang, Choromanska & LeCun, "Deep learning with Elastic Averaging SGD", 2015, section 3; the worker's side
    is in `worker/localsteps.py`.

    Warning: takes the memory of one θ for every shard.
    """

    def __init__(self) -> None:
        #: Lease epoch and step of the push, and x; an array is replaced, never changed.
        self._own: dict[int, tuple[tuple[int, int], Array]] = {}

    @property
    def state(self) -> dict[str, Array]:
        """What a restart needs, by name."""
        return {f"{PREFIX}{shard}": own for shard, (_, own) in self._own.items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take what `state` returned; other names are passed over."""
        for name, own in state.items():
            if name.startswith(PREFIX):
                # Epochs begin at 1: no worker holds a lease under which it was pushed.
                self._own[int(name.removeprefix(PREFIX))] = (0, 0), own

    def pushed(self, shard: int) -> tuple[int, int] | None:
        """Return lease epoch and step of the push that left the shard where it is; None if none has counted."""
        return self._own[shard][0] if shard in self._own else None

    def own(self, shard: int) -> Array | None:
        """Return x of a shard; None if it begins at θ."""
        return self._own[shard][1] if shard in self._own else None

    def distances(self, chunks: Sequence[Terms], contributions: Sequence[Contribution], theta: Array) -> list[Terms]:
        """Take contributions that count now, and return samples · (θ − x) of each in their place, chunk by chunk."""
        if not chunks:
            # None of θ is here.
            return []
        vectors = []
        for c, pieces in zip(contributions, zip(*chunks, strict=True), strict=True):
            # As the worker does with what it pushes, so that both have the same bits.
            own = np.concatenate(pieces) * (1.0 / c.samples)
            self._own[c.shard] = (c.epoch, c.step), own
            vectors.append((theta - own) * c.samples)
        ends = np.cumsum([terms[0].size for terms in chunks])
        return [list(terms) for terms in zip(*(np.split(vector, ends[:-1]) for vector in vectors), strict=True)]
