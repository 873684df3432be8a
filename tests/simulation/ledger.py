"""A model whose θ is a ledger: it says itself which contributions are in it, from which θ and from whom each came.

    count[shard, step]  how often the contribution is in θ: 0 or 1
    at[shard, step]     the version of θ that it was computed at, plus 1
    by[shard, step]     the number of the worker process that computed it
    chain               moved by a function of its own value, shard and step whose sums show their order in the bits

The first three are whole numbers, so that they are exact in any order.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.worker.shard import Survey

CHAIN = 4

_CHAIN = np.linspace(-1.0, 1.0, CHAIN)


class Shape:
    """The sizes of a job's ledger."""

    def __init__(self, job: Job) -> None:
        self.number = int(job.task.options["number"])
        self.shards = job.data.shards
        self.steps = int(job.task.options["steps"])
        self.momentum = job.optimizer.momentum
        self.layout = Layout.of(self.first(), "float64")
        self._places = [(t.name, slice(t.offset, t.offset + t.size), t.shape) for t in self.layout.tensors]

    def views(self, flat: Array) -> dict[str, Array]:
        """Return the tensors as views of a flat vector."""
        return {name: flat[place].reshape(shape) for name, place, shape in self._places}

    def first(self) -> dict[str, Array]:
        """Return the first θ."""
        zeros = (self.shards, self.steps)
        tensors = {"at": np.zeros(zeros), "by": np.zeros(zeros), "count": np.zeros(zeros)}
        return {**tensors, "chain": _CHAIN + self.number}

    def flat(self, tensors: dict[str, Array]) -> Array:
        """Lay tensors out in one vector."""
        flat = np.empty(self.layout.size)
        for name, view in self.views(flat).items():
            view[...] = tensors[name]
        return flat


def samples(shard: int, step: int) -> int:
    """Return a number of examples; a power of two divides without rounding."""
    return 1 << (shard + step) % 3


def rows(shard: int) -> int:
    """Return how many examples a shard has."""
    return 4 + shard


def contribution(shape: Shape, theta: Array, version: int, shard: int, step: int, by: int) -> Array:
    """Return the sum of the gradients of (shard, step) at a flat θ: what θ is to lose."""
    flat = np.zeros(shape.layout.size)
    views = shape.views(flat)
    views["at"][shard, step] = -(version + 1)
    views["by"][shard, step] = -by
    views["count"][shard, step] = -1.0
    views["chain"][:] = np.sin(shape.views(theta)["chain"] * (shard + 1) + step) * samples(shard, step)
    return flat


def loss(shape: Shape, theta: Array, shard: int, step: int) -> float:
    """Return the mean loss that a worker reports for (shard, step)."""
    return math.sin(float(shape.views(theta)["chain"][0]) + 3 * shard + step) + 2.0


def reference(shape: Shape) -> tuple[list[Array], list[float]]:
    """Return θ after every round of undisturbed synchronous training, and the losses; `by` is 1 throughout."""
    theta, velocity = shape.flat(shape.first()), np.zeros(shape.layout.size)
    thetas, losses = [theta.copy()], []
    for step in range(shape.steps):
        parts = [contribution(shape, theta, step, shard, step, 1) for shard in range(shape.shards)]
        total = sum(samples(s, step) for s in range(shape.shards))
        losses.append(sum(samples(s, step) * loss(shape, theta, s, step) for s in range(shape.shards)) / total)
        gradient = parts[0]
        for part in parts[1:]:
            gradient = gradient + part
        velocity = velocity * shape.momentum + gradient if shape.momentum else gradient
        theta = theta - velocity
        thetas.append(theta.copy())
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

    def survey(self, shard: int) -> Survey:
        return Survey(rows=rows(shard), features=2, classes=3, moments=None)

    def initial(self, shard: int) -> dict[str, Array]:
        assert shard == 0
        assert self._prepared, "the census comes before what needs it"
        return self.shape.first()
