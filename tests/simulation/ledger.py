"""A model whose θ is a ledger: it says itself which contributions are in it, from which θ and from whom each came.

    count[shard, step]  how often the contribution is in θ: 0 or 1
    at[shard, step]     the version of θ that it was computed at, plus 1
    by[shard, step]     the number of the worker process that computed it
    chain               moved by a function of its own value, shard and step whose sums show their order in the bits

The first three are whole numbers, so that they are exact in any order. Where θ is cut over several servers, each part
is a ledger of its own: what one server has of a contribution can be held against what the others have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.worker.shard import Survey

CHAIN = 4

_CHAIN = np.linspace(-1.0, 1.0, CHAIN)


class Shape:
    """The sizes of a job's ledger. θ of several servers is cut into as many ledgers, one for each."""

    def __init__(self, job: Job) -> None:
        options = job.task.options
        self.number = int(options["number"])
        self.shards = job.data.shards
        self.steps = int(options["steps"])
        self.momentum = job.optimizer.momentum
        self.parts = job.server.partitions
        sizes = (self.shards, self.steps)
        self._ledger = Layout([("at", sizes), ("by", sizes), ("count", sizes), ("chain", (CHAIN,))], "float64")
        #: Elements of a part.
        self.size = self._ledger.size
        self._places = [(t.name, slice(t.offset, t.offset + t.size), t.shape) for t in self._ledger.tensors]
        # Where all is one small tensor it is cut within, and else between two.
        whole = (
            [("ledger", (self.parts * self.size,))]
            if options["in_one"]
            else [(f"{part} {t.name}", t.shape) for part in range(self.parts) for t in self._ledger.tensors]
        )
        self.layout = Layout(whole, "float64")

    def views(self, part: Array) -> dict[str, Array]:
        """Return the tensors of one ledger as views of it."""
        return {name: part[place].reshape(shape) for name, place, shape in self._places}

    def cut(self, flat: Array) -> list[Array]:
        """Return the parts of a flat vector."""
        return list(flat.reshape(self.parts, self.size))

    def first(self) -> list[Array]:
        """Return the first θ, part by part: nothing is in it, and no two have the same chain."""
        parts = [np.zeros(self.size) for _ in range(self.parts)]
        for number, part in enumerate(parts):
            self.views(part)["chain"][:] = _CHAIN + self.number + number / 8
        return parts

    def flat(self, tensors: dict[str, Array]) -> Array:
        """Lay the model's tensors out in one vector."""
        flat = np.empty(self.layout.size)
        for name, view in self.layout.views(flat).items():
            view[...] = tensors[name]
        return flat


def samples(shard: int, step: int) -> int:
    """Return a number of examples; a power of two divides without rounding."""
    return 1 << (shard + step) % 3


def rows(shard: int) -> int:
    """Return how many examples a shard has."""
    return 4 + shard


def contribution(shape: Shape, theta: Array, version: int, shard: int, step: int, by: int) -> Array:
    """Return the sum of the gradients of (shard, step) at a part of θ: what it is to lose."""
    part = np.zeros(shape.size)
    views = shape.views(part)
    views["at"][shard, step] = -(version + 1)
    views["by"][shard, step] = -by
    views["count"][shard, step] = -1.0
    views["chain"][:] = np.sin(shape.views(theta)["chain"] * (shard + 1) + step) * samples(shard, step)
    return part


def loss(shape: Shape, theta: Array, shard: int, step: int) -> float:
    """Return the mean loss that a worker reports for (shard, step) from the first part of θ."""
    return math.sin(float(shape.views(theta)["chain"][0]) + 3 * shard + step) + 2.0


def reference(shape: Shape) -> tuple[list[list[Array]], list[float]]:
    """Return θ, part by part, after every round of undisturbed synchronous training, and the losses.

    `by` is 1 throughout.
    """
    thetas: list[list[Array]] = []
    for first in shape.first():
        theta, velocity = first, np.zeros(shape.size)
        versions = [theta]
        for step in range(shape.steps):
            gradient, *others = [contribution(shape, theta, step, shard, step, 1) for shard in range(shape.shards)]
            for other in others:
                gradient = gradient + other
            velocity = velocity * shape.momentum + gradient if shape.momentum else gradient
            theta = theta - velocity
            versions.append(theta)
        thetas.append(versions)
    losses = []
    for step in range(shape.steps):
        total = sum(samples(s, step) for s in range(shape.shards))
        own = (samples(s, step) * loss(shape, thetas[0][step], s, step) for s in range(shape.shards))
        losses.append(sum(own) / total)
    return thetas, losses


class Learner:
    """What a simulated worker computes, in the shape of `paramserver.worker.learner.Learner`."""

    def __init__(self, job: Job, _base: Path | None = None) -> None:
        self.job = job
        self.shape = Shape(job)
        #: The model has none.
        self.tables: dict[str, Any] = {}
        self.own: dict[int, dict[str, Array]] = {}
        self._prepared = False

    def prepare(self, classes: int, moments: Any) -> None:
        assert (classes, moments) == (3, None)
        self._prepared = True

    def look_ahead(self, coming: Sequence[tuple[int, int]], is_over: Callable[[], bool] = lambda: False) -> None:
        """There is nothing to be made ahead, but what comes must be a step of a shard."""
        is_over()
        assert all(0 <= shard < self.job.data.shards and step > 0 for shard, step in coming)

    def survey(self, shard: int) -> Survey:
        return Survey(rows=rows(shard), features=2, classes=3, moments=None)

    def initial(self, shard: int) -> dict[str, Array]:
        assert shard == 0
        assert self._prepared, "the census comes before what needs it"
        first: dict[str, Array] = self.shape.layout.views(np.concatenate(self.shape.first()))
        return first
