"""A loop of one's own that pushes integers which it makes up, and writes down what the server acknowledged.

python accounting_loop.py ADDRESSES NAME JOURNAL. As `accounting_worker.py`, by the worker library: for any number of
servers, and with shared memory. As often as not it waits until a push is acknowledged.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.errors import ParamserverError
from paramserver.worker import Worker
from processes.accounting_worker import SHARDS, STEPS, Journal


class Sums:
    """The model: one element for every shard and step."""

    def init(self, _rng: np.random.Generator, _batch: Any) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"sum": np.zeros(SHARDS * STEPS)}

    def loss_and_grad(self, _params: dict[str, Any], _batch: Any) -> tuple[float, dict[str, Any]]:
        """Not asked for."""
        raise AssertionError("the loop computes")


def rows() -> tuple[Any, Any]:
    """Return the data: as good as none."""
    return np.zeros((4 * SHARDS, 1)), np.zeros(4 * SHARDS)


def main(addresses: str, name: str, path: str) -> None:
    """Work until the job is over."""
    journal, chance = Journal(path), random.Random(os.urandom(8))
    with Worker(addresses, name=name, base=Path(__file__).parent) as worker:
        for step in worker.steps():
            value = chance.randrange(1, 2**40)
            gradient = np.zeros(SHARDS * STEPS)
            gradient[step.shard * STEPS + step.number] = value
            journal.write("sent", step.shard, step.number, value)
            try:
                step.push({"sum": gradient}, loss=1.0, samples=1)
            except ParamserverError:
                # Its work was given up: the connection has broken.
                continue
            if chance.random() < 0.5 and step.wait():
                journal.write("acked", step.shard, step.number, value)


if __name__ == "__main__":
    main(*sys.argv[1:])
