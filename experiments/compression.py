"""Compression: the bytes that workers push until a fixed accuracy, by codec.

python -m experiments.compression [--seeds 0 1 2 3 4] [--write]

The real encoders in virtual time; what is counted is the tensor bytes of the contributions, without headers, and
without the parameters on their way to the workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

from matplotlib.figure import Figure

from experiments.report import COLOURS, Experiment, command, distinct, spread, table, tidy
from experiments.trials import Row, run_all
from experiments.virtual import Simulation, Worker
from paramserver.wire.job import Job, WireSection

SHARDS, TARGET, RATE, MOST_ROUNDS = 4, 0.95, 0.2, 3000
#: Rounds between two looks at the accuracy.
LOOK = 5

#: Every codec that there is, as it comes, and some with other options.
CODECS: dict[str, dict[str, Any]] = {
    **{push: {"push": push} for push in get_args(WireSection.model_fields["push"].annotation)},
    "topk, density 0.001": {"push": "topk", "density": 0.001},
}


def make_job(seed: int, codec: str, rounds: int) -> Job:
    """Return a perceptron with one hidden layer of 128 on the digits: 9610 parameters."""
    return Job.from_dict(
        {
            "task": {"use": "mlp", "options": {"hidden": [128]}},
            "data": {
                "source": "builtin:digits/train",
                "test": "builtin:digits/test",
                "shards": SHARDS,
                "batch_size": 32,
            },
            "train": {"steps": rounds, "seed": seed},
            "optimizer": {"learning_rate": RATE},
            "wire": CODECS[codec],
        }
    )


def trial(case: tuple[int, str, int]) -> list[Row]:
    """Train until the target."""
    seed, codec, rounds = case
    best = 0.0

    def reached(simulation: Simulation) -> bool:
        nonlocal best
        if simulation.version % LOOK == 0:
            best = max(best, simulation.test_accuracy())
        return best >= TARGET

    simulation = Simulation(make_job(seed, codec, rounds), [Worker()] * SHARDS).run(reached)
    row: Row = {"codec": codec, "seed": seed, "best accuracy": round(best, 5)}
    arrived = best >= TARGET
    row["rounds"] = simulation.version if arrived else math.inf
    row["kB"] = round(simulation.pushed_bytes / 1000, 1) if arrived else math.inf
    row["bytes a value"] = round(simulation.pushed_bytes / simulation.contributions / simulation.size, 4)
    return [row]


def measure(seeds: Sequence[int], tiny: bool) -> list[Row]:
    """Train with every codec."""
    rounds = 2 * LOOK if tiny else MOST_ROUNDS
    return run_all(trial, [(seed, codec, rounds) for codec in CODECS for seed in seeds], here=tiny)


def tell(rows: Sequence[Row]) -> list[str]:
    """Return the table of bytes and rounds."""
    plain = spread(rows, "kB", codec="full")
    body = []
    for codec in distinct(rows, "codec"):
        found = [spread(rows, value, codec=codec) for value in ("bytes a value", "rounds", "kB", "best accuracy")]
        cells = [each.text(digits) for each, digits in zip(found, (3, 0, 0, 3), strict=True) if each]
        kilobytes = found[2]
        share = ""
        if plain and kilobytes and math.isfinite(kilobytes.median) and math.isfinite(plain.median):
            share = f"{kilobytes.median / plain.median:.3f}"
        body.append([str(codec), *cells, share])
    head = ["wire.push", "bytes a value", f"rounds to {TARGET:g}", "kB pushed until then", "best accuracy seen"]
    return table([*head, "kB against full"], body)


def draw(rows: Sequence[Row], figure: Figure) -> None:
    """Draw bytes and rounds to the target as bars, every run as a dot."""
    figure.set_size_inches(9.6, 3.8)
    codecs = distinct(rows, "codec")
    panels = (("kB", f"kB pushed until {TARGET:.0%} test accuracy"), ("rounds", "rounds until then"))
    for number, (axes, (value, title)) in enumerate(zip(figure.subplots(1, 2, sharey=True), panels, strict=True)):
        finite = [float(row[value]) for row in rows if math.isfinite(float(row[value]))]
        for place, codec in enumerate(codecs):
            found = spread(rows, value, codec=codec)
            if found is None or not math.isfinite(found.median):
                axes.text(min(finite, default=1.0), place, " never", va="center", fontsize=8)
                continue
            axes.barh(place, found.median, 0.7, color=COLOURS[number], alpha=0.85)
            runs = [float(row[value]) for row in rows if row["codec"] == codec]
            axes.plot(runs, [place] * len(runs), "k.", markersize=4)
            axes.text(found.high * 1.1, place, f"{found.median:,.0f}", va="center", fontsize=8)
        if finite and value == "kB":
            axes.set_xscale("log")
            axes.set_xlim(min(finite) / 2, max(finite) * 3)
        elif finite:
            axes.set_xlim(0, max(finite) * 1.2)
        tidy(axes, title, value, "")
        axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(codecs)), [str(codec) for codec in codecs])
    axes.invert_yaxis()


EXPERIMENT = Experiment("compression", measure, tell, draw)

if __name__ == "__main__":
    command(EXPERIMENT)
