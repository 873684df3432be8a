"""Delay study: the accuracy of async training when every gradient is so many versions old.

python -m experiments.delays [--seeds 0 1 2 3 4] [--write]

A delay of d is made by d + 1 shards that take turns, in virtual time: between the pull and the push of each, every
other one pushes once. The number of updates and the size of their batches is the same for all delays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments import fashion
from experiments.report import Experiment, Spread, command, curve, distinct, spread, table, tidy
from experiments.trials import Row, run_all
from experiments.virtual import Simulation, Worker
from paramserver.wire.job import Job

DELAYS = (0, 1, 2, 4, 8, 16, 32)

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"staleness_scaling": True},
    "compensated": {"delay_compensation": 0.5},
}


class Setting(NamedTuple):
    """What is trained, for how long, and a rate that is good without delay."""

    source: str
    test: str
    updates: int
    rate: float


SETTINGS = {
    "digits": Setting("builtin:digits/train", "builtin:digits/test", 1500, 0.2),
    "Fashion-MNIST": Setting("experiments.fashion:train", "experiments.fashion:test", 1500, 0.1),
}
#: Shares of that rate among which the best is looked for.
SHARES = (1.0, 0.3, 0.1, 0.03)


def make_job(seed: int, name: str, way: str, delay: int, updates: int, rate: float) -> Job:
    """Return a perceptron with one hidden layer whose contributions are all `delay` versions old."""
    setting = SETTINGS[name]
    return Job.from_dict(
        {
            "task": {"use": "mlp", "options": {"hidden": [32]}},
            "data": {"source": setting.source, "test": setting.test, "shards": delay + 1, "batch_size": 32},
            "train": {"mode": "async", "steps": -(-updates // (delay + 1)), "seed": seed, **WAYS[way]},
            "optimizer": {"learning_rate": rate},
        }
    )


def trial(case: tuple[int, str, str, int, int, float]) -> list[Row]:
    """Train once."""
    seed, name, way, delay, updates, rate = case
    job = make_job(seed, name, way, delay, updates, rate)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        simulation = Simulation(job, [Worker()] * (delay + 1)).run(lambda running: running.version >= updates)
        accuracy = simulation.test_accuracy()
    row: Row = {"data": name, "way": way, "delay": delay, "rate": rate, "seed": seed, "accuracy": round(accuracy, 5)}
    return [row]


def measure(seeds: Sequence[int], tiny: bool) -> list[Row]:
    """Train with every delay in every way, as long as the data are there."""
    cases = []
    for name, setting in SETTINGS.items():
        if tiny and name != "digits":
            continue
        if name == "Fashion-MNIST" and not fashion.AVAILABLE:
            print(f"note: {name} is skipped, since there is no {fashion.FOLDER}", file=sys.stderr)
            continue
        updates = 40 if tiny else setting.updates
        for delay in DELAYS[:2] if tiny else DELAYS:
            # Without delay all ways are the same.
            for way in WAYS if delay else ("plain",):
                # At a delay that never varies, scaling is a smaller rate and nothing else.
                for share in SHARES[:1] if way == "scaled" or tiny else SHARES:
                    cases += [(seed, name, way, delay, updates, setting.rate * share) for seed in seeds]
    return run_all(trial, cases, here=tiny)


def at_rate(rows: Sequence[Row], name: str, way: str, delay: int) -> Spread | None:
    """Return the accuracies at the rate that is good without delay."""
    return spread(rows, "accuracy", data=name, way=way, delay=delay, rate=SETTINGS[name].rate)


def best(rows: Sequence[Row], name: str, way: str, delay: int) -> tuple[Spread, float] | None:
    """Return the accuracies at the rate whose median is best, and that rate."""
    found = [
        (each, SETTINGS[name].rate * share)
        for share in SHARES
        if (each := spread(rows, "accuracy", data=name, way=way, delay=delay, rate=SETTINGS[name].rate * share))
    ]
    return max(found, default=None)


def tell(rows: Sequence[Row]) -> list[str]:
    """Return a table for each data set."""
    lines = []
    for name in map(str, distinct(rows, "data")):
        body = []
        for delay in map(int, distinct(rows, "delay")):
            fixed = [at_rate(rows, name, way if delay else "plain", delay) for way in WAYS]
            tuned = [best(rows, name, way if delay else "plain", delay) for way in ("plain", "compensated")]
            cells = [each.text() if each else "" for each in fixed]
            cells += [f"{pair[0].text()} at {pair[1]:.2g}" if pair else "" for pair in tuned]
            body.append([str(delay), *cells])
        rate = f"{SETTINGS[name].rate:g}"
        head = ["delay", *(f"{way}, rate {rate}" for way in WAYS), "plain, best rate", "compensated, best rate"]
        lines += ["", f"{name}:", "", *table(head, body)]
    return [*lines[1:], ""]


def draw(rows: Sequence[Row], figure: Figure) -> None:
    """Draw accuracy over delay, a panel for each data set."""
    names = [str(name) for name in distinct(rows, "data")]
    figure.set_size_inches(4.8 * len(names), 4.2)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        delays = [int(delay) for delay in distinct(rows, "delay")]
        for number, way in enumerate(WAYS):
            points = [(d, found) for d in delays if (found := at_rate(rows, name, way if d else "plain", d))]
            curve(axes, number, f"{way}, rate {SETTINGS[name].rate:g}", points)
        for number, way in enumerate(("plain", "compensated"), start=len(WAYS)):
            tuned = [(d, pair[0]) for d in delays if (pair := best(rows, name, way if d else "plain", d))]
            curve(axes, number, f"{way}, best rate", tuned)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(delays)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(0, 1)
        tidy(axes, name, "delay of every contribution, versions", "test accuracy")
        axes.legend(fontsize=8, frameon=False, loc="lower left")


EXPERIMENT = Experiment("delays", measure, tell, draw)

if __name__ == "__main__":
    command(EXPERIMENT)
