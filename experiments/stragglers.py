"""Straggler study: the time to a fixed loss with four workers, one of them five times slower, by mode.

python -m experiments.stragglers [--seeds 0 1 2 3 4] [--write]

Real processes that talk over the real wire. What a gradient costs is simulated: a worker waits until the time that it
takes on its hardware is over. The loss is that of all training examples at the θ that a client pulls again and again.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.report import COLOURS, Experiment, command, distinct, spread, table, tidy
from experiments.slow import SLOWNESS
from experiments.trials import Row
from paramserver.client import Client, Job
from paramserver.client.launch import LocalCluster
from paramserver.client.localprocess import LocalProcess
from paramserver.wire.errors import NotReady
from paramserver.worker.batches import Batch
from paramserver.worker.data import open_source
from paramserver.worker.tasks import Task, load_task, loss_and_gradient

HERE = Path(__file__).parent

FAST_WORKERS, TIMES_SLOWER, STEP_S = 3, 5, 0.01
TARGET, LIMIT_S = 0.3, 5.0
#: Between two looks at θ.
LOOK_S = 0.01


class Mode(NamedTuple):
    """A policy, and the best of the rates 0.1, 0.2, 0.4, 0.8 and 1.6 for it, found in virtual time on alike shards."""

    train: dict[str, Any]
    rate: float


MODES = {
    "sync": Mode({"mode": "sync"}, 0.8),
    "sync, quorum 3 of 4": Mode({"mode": "sync", "quorum": FAST_WORKERS}, 0.8),
    "ssp, staleness 3": Mode({"mode": "ssp", "staleness": 3}, 0.2),
    "async": Mode({"mode": "async"}, 0.2),
    "async, max_delay 8": Mode({"mode": "async", "max_delay": 8}, 0.2),
}
CUTS: dict[str, float | None] = {"alike": None, "skewed": 0.1}


def make_job(seed: int, mode: str, skew: float | None) -> Job:
    """Return a job that goes on until it is stopped."""
    return Job.from_dict(
        {
            "task": {"use": "slow.py:SlowMlp", "options": {"seconds": STEP_S}},
            "data": {
                "source": "builtin:digits/train",
                "shards": FAST_WORKERS + 1,
                "batch_size": 32,
                "label_skew": skew,
            },
            "train": {"steps": 10**6, "seed": seed, **MODES[mode].train},
            "optimizer": {"learning_rate": MODES[mode].rate},
        }
    )


@contextmanager
def cluster() -> Iterator[Client]:
    """Start a server, three workers and a slow one, which alone reads the last shard; yield a client."""
    with tempfile.TemporaryDirectory() as folder, LocalCluster(FAST_WORKERS, Path(folder), HERE) as fast:
        os.environ[SLOWNESS] = str(TIMES_SLOWER)
        try:
            arguments = ("--server", fast.address, "--base", str(HERE), "--shards", f"pinned:{FAST_WORKERS}")
            slow = LocalProcess("slow", Path(folder), "paramserver.worker", *arguments)
        finally:
            del os.environ[SLOWNESS]
        try:
            with Client(fast.address, 30.0, fast.check) as client:
                while len(client.status().workers) <= FAST_WORKERS:
                    time.sleep(LOOK_S)
                yield client
        finally:
            slow.process.kill()
            slow.process.wait()


def seconds_to_target(client: Client, job: Job, task: Task, everything: Batch, target: float, limit_s: float) -> float:
    """Train until all examples together have the target loss; infinity if that takes longer than the limit."""
    client.submit(job)
    start = None
    try:
        while True:
            time.sleep(LOOK_S)
            try:
                theta, _ = client.pull()
            except NotReady:
                continue
            now = time.perf_counter()
            start = now if start is None else start
            with np.errstate(over="ignore"):
                loss, _ = loss_and_gradient(task, theta, everything)
            if loss <= target:
                return now - start
            if now - start > limit_s:
                return math.inf
    finally:
        client.stop()


def measure(seeds: Sequence[int], tiny: bool) -> list[Row]:
    """Train in every mode on every cut, one run after another: they are measured."""
    target, limit_s = (2.2, 5.0) if tiny else (TARGET, LIMIT_S)
    modes = list(MODES)[:2] if tiny else list(MODES)
    task = load_task("mlp", {"hidden": [32]})
    source = open_source("builtin:digits/train")
    x, y = source.read(0, source.rows)
    everything = Batch(x.astype(np.float32), y.astype(np.float32), 10)
    rows: list[Row] = []
    with cluster() as client:
        for seed in seeds:
            for cut in list(CUTS)[:1] if tiny else CUTS:
                for mode in modes:
                    job = make_job(seed, mode, CUTS[cut])
                    seconds = seconds_to_target(client, job, task, everything, target, limit_s)
                    version = client.status().version
                    row: Row = {"mode": mode, "shards": cut, "seed": seed, "seconds": round(seconds, 3)}
                    rows.append(row | {"updates": version if math.isfinite(seconds) else math.inf})
    return rows


def tell(rows: Sequence[Row]) -> list[str]:
    """Return the table of times."""
    body = []
    for mode in distinct(rows, "mode"):
        cells = []
        for cut in distinct(rows, "shards"):
            found = [spread(rows, value, mode=mode, shards=cut) for value in ("seconds", "updates")]
            cells += [each.text(digits) for each, digits in zip(found, (2, 0), strict=True) if each]
        body.append([str(mode), f"{MODES[str(mode)].rate:g}", *cells])
    heads = [f"{cut} shards: {what}" for cut in distinct(rows, "shards") for what in ("seconds", "updates")]
    return table(["mode", "rate", *heads], body)


def draw(rows: Sequence[Row], figure: Figure) -> None:
    """Draw the times as bars with every run as a dot; runs that did not arrive stand at the limit."""
    figure.set_size_inches(8.4, 3.8)
    axes = figure.subplots()
    modes, cuts = distinct(rows, "mode"), distinct(rows, "shards")
    height = 0.8 / len(cuts)
    for number, cut in enumerate(cuts):
        for place, mode in enumerate(modes):
            times = [float(row["seconds"]) for row in rows if row["mode"] == mode and row["shards"] == cut]
            found = spread(rows, "seconds", mode=mode, shards=cut)
            if found is None:
                continue
            y = place + (number - (len(cuts) - 1) / 2) * height
            arrived = math.isfinite(found.median)
            label = f"{cut} shards" if place == 0 else None
            width = found.median if arrived else LIMIT_S
            hatch = None if arrived else "///"
            axes.barh(
                y, width, height * 0.9, color=COLOURS[number], alpha=0.85 if arrived else 0.25, hatch=hatch, label=label
            )
            dots = [seconds for seconds in times if math.isfinite(seconds)]
            axes.plot(dots, [y] * len(dots), "k.", markersize=4)
            text = f" {found.median:.2f} s" if arrived else f" {found.arrived} of {found.runs} runs"
            axes.text(max([width, *dots]), y, text, va="center", fontsize=8)
    axes.set_yticks(range(len(modes)), [str(mode) for mode in modes])
    axes.invert_yaxis()
    axes.set_xlim(0, LIMIT_S * 1.1)
    title = f"Time to a training loss of {TARGET:g}, one of four workers {TIMES_SLOWER} times slower (dots: runs)"
    tidy(axes, title, "seconds", "")
    axes.grid(visible=False, axis="y")
    axes.legend(fontsize=8, frameon=False, loc="upper right")


EXPERIMENT = Experiment("stragglers", measure, tell, draw)

if __name__ == "__main__":
    command(EXPERIMENT)
