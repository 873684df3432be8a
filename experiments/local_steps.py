"""Local steps: rounds of communication to a fixed accuracy, by steps between two rounds, on alike and on skewed shards.

python -m experiments.local_steps [--seeds 0 1 2 3 4] [--write]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from experiments.report import Experiment, command, curve, distinct, spread, table, tidy
from experiments.trials import Row, run_all
from experiments.virtual import Simulation, Worker
from paramserver.wire.job import Job

SHARDS, TARGET, RATE = 8, 0.95, 0.2
STEPS = (1, 4, 16, 64)
#: Batches of every shard before a run is given up.
MOST_BATCHES = 6_400

CUTS: dict[str, float | None] = {"alike": None, "skewed": 0.1}
LOCAL = {"local_learning_rate": RATE}
#: By name: what is pushed, and how far the server goes with it.
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "averaging": ({"local_update": "difference"}, 1.0),
    "elastic": ({"local_update": "elastic", "elasticity": 0.5}, 1.0),
}


def make_job(seed: int, way: str, steps: int, skew: float | None, most_batches: int) -> Job:
    """Return a perceptron with one hidden layer on the digits."""
    train, rate = WAYS[way]
    return Job.from_dict(
        {
            "task": {"use": "mlp", "options": {"hidden": [32]}},
            "data": {
                "source": "builtin:digits/train",
                "test": "builtin:digits/test",
                "shards": SHARDS,
                "batch_size": 16,
                "label_skew": skew,
            },
            "train": {"steps": most_batches // steps, "seed": seed, "local_steps": steps, **LOCAL, **train},
            "optimizer": {"learning_rate": rate},
        }
    )


def trial(case: tuple[int, str, int, str, int]) -> list[Row]:
    """Train until the target, looking at the accuracy after every round."""
    seed, way, steps, cut, most_batches = case
    best = 0.0

    def reached(simulation: Simulation) -> bool:
        nonlocal best
        best = max(best, simulation.test_accuracy())
        return best >= TARGET

    job = make_job(seed, way, steps, CUTS[cut], most_batches)
    simulation = Simulation(job, [Worker()] * SHARDS).run(reached)
    rounds = simulation.version if best >= TARGET else math.inf
    row: Row = {"way": way, "shards": cut, "local steps": steps, "seed": seed, "rounds": rounds}
    return [row | {"batches": rounds * steps, "best accuracy": round(best, 5)}]


def measure(seeds: Sequence[int], tiny: bool) -> list[Row]:
    """Train with every number of local steps."""
    most = 64 if tiny else MOST_BATCHES
    cases = [(seed, way, steps, cut, most) for way in WAYS for cut in CUTS for steps in STEPS for seed in seeds]
    return run_all(trial, cases, here=tiny)


def tell(rows: Sequence[Row]) -> list[str]:
    """Return the table of rounds."""
    body = []
    for way in distinct(rows, "way"):
        for cut in distinct(rows, "shards"):
            for steps in distinct(rows, "local steps"):
                where = {"way": way, "shards": cut, "local steps": steps}
                found = [spread(rows, value, **where) for value in ("rounds", "batches", "best accuracy")]
                cells = [each.text(digits) for each, digits in zip(found, (0, 0, 3), strict=True) if each]
                body.append([str(way), str(cut), str(steps), *cells])
    return table(
        ["pushed", "shards", "local steps", f"rounds to {TARGET:g}", "batches of a shard", "best accuracy seen"], body
    )


def draw(rows: Sequence[Row], figure: Figure) -> None:
    """Draw rounds, and the batches that they took, over local steps."""
    figure.set_size_inches(9.6, 4.2)
    for axes, value, title in zip(
        figure.subplots(1, 2),
        ("rounds", "batches"),
        (f"Rounds to {TARGET:.0%} test accuracy", "Batches that every shard computed for that"),
        strict=True,
    ):
        number = 0
        for way in distinct(rows, "way"):
            for cut in distinct(rows, "shards"):
                points = []
                for steps in distinct(rows, "local steps"):
                    found = spread(rows, value, way=way, shards=cut, **{"local steps": steps})
                    if found:
                        points.append((float(steps), found))
                curve(axes, number, f"{way}, {cut} shards", points)
                number += 1
        axes.set_xscale("log", base=2)
        if any(math.isfinite(float(row[value])) for row in rows):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(STEPS)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
        tidy(axes, title, "local steps H (a point that lacks was not reached)", value)
        if value == "rounds":
            axes.legend(fontsize=8, frameon=False, loc="lower left")


EXPERIMENT = Experiment("local_steps", measure, tell, draw)

if __name__ == "__main__":
    command(EXPERIMENT)
