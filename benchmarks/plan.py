"""Which cells one run measures, in which order: what is compared stands side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

#: How tensors may travel, each measured in every cell that has a transport.
TRANSPORTS = ("shm", "stream")
#: Other programs that do the same work, where they are installed.
PEERS = ("gloo", "ray")

SIZES = (1_000, 1_000_000, 25_000_000)
SMALL, MIDDLE, LARGE = SIZES
WORKERS = (1, 2, 4, 8)
#: Those of most figures.
PAIR = 2

#: θ that shows whether throughput depends on the size of messages, and one of 3 GB.
HUGE, THREE_GB = 250_000_000, 750_000_000

#: Codecs besides `full`; the floor stays that of float32.
WIRES = ("bf16", "int8", "topk")

#: Options of `bench apply`.
UPDATES: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.9, "plain": True},
    {"optimizer": "adam"},
    {"optimizer": "adam", "plain": True},
)

#: Examples of a shard in a round of Fashion-MNIST.
BATCHES = (256, 1024)

#: Kinds of cells that are measured in every turn; all others are in the first alone. A machine may be half as fast
#: some minutes later: what is compared is measured close together, and that several times, each time by new processes.
IN_TURNS = frozenset({"rounds", "peer", "partitions", "accuracy"})


class Cell(NamedTuple):
    """Something to measure."""

    #: A function of `benchmarks.measuring`, and its arguments.
    kind: str
    options: dict[str, Any]

    def __str__(self) -> str:
        told = (
            f"{name}={value:,}" if type(value) is int else f"{name}={value}" for name, value in self.options.items()
        )
        return f"{self.kind} {' '.join(told)}"


class Effort(NamedTuple):
    """How much is measured."""

    #: Rounds by size, with up to two workers, and pulls; more workers make half as many, and two servers too.
    rounds: dict[int, int]
    #: Numbers of workers by size.
    workers: dict[int, tuple[int, ...]]
    #: How often what is compared is measured.
    turns: int
    #: Rounds of the small and of the huge θ.
    huge_rounds: tuple[int, int]
    #: Rounds of 3 GB; 0 leaves them out.
    three_gb_rounds: int
    #: Size and rounds over which the server's memory is watched.
    flat: tuple[int, int]
    updates: int
    #: Rows of the table.
    rows: int
    #: Of Fashion-MNIST.
    epochs: int


FULL = Effort(
    rounds={SMALL: 2_000, MIDDLE: 200, LARGE: 20},
    workers=dict.fromkeys(SIZES, WORKERS),
    turns=5,
    huge_rounds=(15, 6),
    three_gb_rounds=3,
    flat=(LARGE, 1_000),
    updates=20,
    rows=10_000_000,
    epochs=2,
)
QUICK = Effort(
    rounds={SMALL: 500, MIDDLE: 50, LARGE: 8},
    workers={SMALL: WORKERS, MIDDLE: (PAIR, 2 * PAIR), LARGE: (PAIR,)},
    turns=1,
    huge_rounds=(5, 3),
    three_gb_rounds=0,
    flat=(MIDDLE, 1_000),
    updates=5,
    rows=1_000_000,
    epochs=1,
)


def cells(effort: Effort) -> Iterator[Cell]:
    """Yield every cell of a run."""
    for size in SIZES:
        for transport in TRANSPORTS:
            for workers in effort.workers[size]:
                rounds = effort.rounds[size] if workers <= PAIR else effort.rounds[size] // 2
                options: dict[str, Any] = {"size": size, "workers": workers, "rounds": rounds}
                yield Cell("rounds", {**options, "transport": transport, "wire": "full"})
        for peer in PEERS:
            yield Cell("peer", {"peer": peer, "size": size, "workers": PAIR, "rounds": effort.rounds[size]})
    for wire in WIRES:
        options = {"size": LARGE, "workers": PAIR, "rounds": effort.rounds[LARGE]}
        yield Cell("rounds", {**options, "transport": "stream", "wire": wire})
    for size in (MIDDLE, LARGE):
        for transport in TRANSPORTS:
            rounds = max(5, effort.rounds[size] // 2)
            options = {"size": size, "rounds": rounds, "transport": transport}
            yield Cell("partitions", {**options, "servers": 2})
    for transport in TRANSPORTS:
        small, huge = effort.huge_rounds
        yield Cell("message_size", {"transport": transport, "sizes": [LARGE, HUGE], "rounds": [small, huge]})
    for transport in TRANSPORTS:
        if effort.three_gb_rounds:
            yield Cell("fits", {"transport": transport, "size": THREE_GB, "rounds": effort.three_gb_rounds})
    for transport in TRANSPORTS:
        size, rounds = effort.flat
        yield Cell("flat", {"transport": transport, "size": size, "rounds": rounds})
    for size in SIZES:
        for transport in TRANSPORTS:
            yield Cell("pulls", {"size": size, "transport": transport, "pulls": effort.rounds[size]})
    for update in UPDATES:
        yield Cell("updates", {"size": LARGE, "updates": effort.updates, **update})
    yield Cell("table", {"rows": effort.rows})
    for batch in BATCHES:
        yield Cell("accuracy", {"batch": batch, "epochs": effort.epochs})
