"""Byzantine study: what hostile workers do to the accuracy, by attack and by how a round is aggregated.

python -m experiments.byzantine [--seeds 0 1 2 3 4] [--write]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.report import Experiment, command, distinct, spread, table, tidy
from experiments.trials import Row, run_all
from experiments.virtual import Simulation, Worker
from paramserver.wire.job import Job
from paramserver.wire.layout import Array

WORKERS, HOSTILE, ROUNDS = 10, 3, 300

AGGREGATORS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean, clipped": {"clip_contribution": 1.0},
    "median": {"aggregate": "median"},
    "trimmed mean": {"aggregate": "trimmed_mean", "trim": HOSTILE},
    "krum": {"aggregate": "krum", "byzantine": HOSTILE},
    "multi-krum": {"aggregate": "multi_krum", "byzantine": HOSTILE},
}


def sign_flip(gradient: Array, _shard: int, _step: int) -> Array:
    """Point the other way, five times as hard."""
    return -5 * gradient


def large_norm(gradient: Array, shard: int, step: int) -> Array:
    """Send noise a hundred times as long as the gradient."""
    noise = np.random.default_rng((shard, step)).standard_normal(gradient.size).astype(gradient.dtype)
    noise *= 100 * np.linalg.norm(gradient) / np.linalg.norm(noise)
    return noise


def not_a_number(gradient: Array, _shard: int, _step: int) -> Array:
    """Send a gradient with one NaN."""
    gradient[0] = np.nan
    return gradient


ATTACKS = {"none": None, "sign flip": sign_flip, "large norm": large_norm, "NaN": not_a_number}

#: By column of the table: the attack, the label skew of the shards, and whether the server looks for NaN.
CASES: dict[str, tuple[str, float | None, bool]] = {
    "none": ("none", None, True),
    "sign flip": ("sign flip", None, True),
    "large norm": ("large norm", None, True),
    "NaN": ("NaN", None, True),
    "NaN, unchecked": ("NaN", None, False),
    "none, skewed": ("none", 0.5, True),
    "sign flip, skewed": ("sign flip", 0.5, True),
}


def make_job(seed: int, aggregator: str, skew: float | None, rounds: int) -> Job:
    """Return softmax regression on the digits, a shard for each worker."""
    return Job.from_dict(
        {
            "task": {"use": "softmax_regression"},
            "data": {
                "source": "builtin:digits/train",
                "test": "builtin:digits/test",
                "shards": WORKERS,
                "batch_size": 32,
                "label_skew": skew,
            },
            "train": {"steps": rounds, "seed": seed, **AGGREGATORS[aggregator]},
            "optimizer": {"learning_rate": 0.5},
        }
    )


def trial(case: tuple[int, str, str, int]) -> list[Row]:
    """Train once."""
    seed, aggregator, name, rounds = case
    attack, skew, checked = CASES[name]
    workers = [Worker(alter=ATTACKS[attack] if number < HOSTILE else None) for number in range(WORKERS)]
    with np.errstate(over="ignore", invalid="ignore"):
        simulation = Simulation(make_job(seed, aggregator, skew, rounds), workers, checked).run()
        accuracy = simulation.test_accuracy()
    return [{"aggregator": aggregator, "attack": name, "seed": seed, "accuracy": round(accuracy, 5)}]


def measure(seeds: Sequence[int], tiny: bool) -> list[Row]:
    """Train with every aggregator under every attack."""
    rounds = 5 if tiny else ROUNDS
    cases = [(seed, how, name, rounds) for how in AGGREGATORS for name in CASES for seed in seeds]
    return run_all(trial, cases, here=tiny)


def tell(rows: Sequence[Row]) -> list[str]:
    """Return the table of accuracies."""
    attacks = [str(name) for name in distinct(rows, "attack")]
    body = []
    for how in distinct(rows, "aggregator"):
        found = [spread(rows, "accuracy", aggregator=how, attack=name) for name in attacks]
        body.append([str(how), *(each.text() if each else "" for each in found)])
    return table(["aggregate", *attacks], body)


def draw(rows: Sequence[Row], figure: Figure) -> None:
    """Draw the median accuracies as a map, since every pair of attack and aggregator is a case of its own."""
    attacks, ways = distinct(rows, "attack"), distinct(rows, "aggregator")
    figure.set_size_inches(8.4, 3.6)
    axes = figure.subplots()
    found = [[spread(rows, "accuracy", aggregator=how, attack=name) for name in attacks] for how in ways]
    medians = np.array([[each.median if each else np.nan for each in line] for line in found])
    picture = axes.imshow(medians, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(medians):
        each = found[row][column]
        if each is not None:
            colour = "white" if value < 0.6 else "black"
            text = f"{value:.2f}\n{each.low:.2f}–{each.high:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(attacks)), [str(name).replace(", ", ",\n") for name in attacks])
    axes.set_yticks(range(len(ways)), [str(how) for how in ways])
    tidy(axes, f"Test accuracy, {HOSTILE} of {WORKERS} workers hostile: median and range", "attack", "")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, label="accuracy")


EXPERIMENT = Experiment("byzantine", measure, tell, draw)

if __name__ == "__main__":
    command(EXPERIMENT)
