"""The loss curve of a run as a picture; importing this module needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paramserver.client.connection.client import Point
from paramserver.client.files import atomically
from paramserver.wire.job import Job

#: Above this ratio of largest to smallest loss a linear axis hides how the run ended.
_LOGARITHMIC_FROM = 5.0


def plot_loss(job: Job, history: Sequence[Point], paths: Iterable[Path]) -> None:
    """Draw loss over steps into every path; the ending of a path names its format."""
    steps = [point.step for point in history]
    losses = [point.loss for point in history]
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#1f6feb", linewidth=1.6, marker="o" if len(steps) < 30 else "", markersize=4)
    if min(losses) > 0 and max(losses) > _LOGARITHMIC_FROM * min(losses):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    last = history[-1]
    axes.set_title(
        f"{job.task.use} · {job.train.mode}, {job.data.shards} shards\n"
        f"loss {last.loss:.6g} after {last.step} steps and {last.seconds:.3g} s",
        fontsize=10,
        loc="left",
    )
    # A fixed salt and no date: the same run draws the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "paramserver"}):
        for path in paths:
            kind = path.suffix.removeprefix(".")
            with atomically(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
