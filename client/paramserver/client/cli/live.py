"""Progress as a view that stays in place on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from paramserver.client.cli.pace import Pace
from paramserver.client.cli.summary import mean_staleness, mode, step, task
from paramserver.client.connection.client import Update
from paramserver.wire.v1 import paramserver_pb2 as pb

_REFRESHES_PER_S = 8
_MOST_WORKERS = 12
_MOST_WAITS = 3
#: Shorter waits are the ordinary breath of a barrier.
_NOTABLE_WAIT_S = 0.5
_COLOURS = {"ready": "green", "silent": "yellow", "stuck": "red", "done": "green", "failed": "red", "stopped": "yellow"}


class LiveView:
    """Keeps the newest update; it is drawn a few times a second, however often updates come."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._status: pb.StatusReply | None = None

    def show(self, update: Update) -> None:
        """Take an update."""
        self._pace.note(update.status)
        self._status = update.status

    def __rich__(self) -> RenderableType:
        if self._status is None:
            return Text("starting …", style="dim")
        return render(self._status, self._pace.steps_per_s)


@contextmanager
def live(console: Console) -> Iterator[LiveView]:
    """Draw a view on the console until the block ends; its last state stays."""
    view = LiveView()
    with Live(view, console=console, refresh_per_second=_REFRESHES_PER_S):
        yield view


def render(status: pb.StatusReply, steps_per_s: float = 0.0) -> RenderableType:
    """Return a picture of the status: the job, its numbers, its workers, and whom it waits for."""
    parts: list[RenderableType] = [_headline(status)]
    if status.job_id:
        parts += [_bar(status), _numbers(status, steps_per_s)]
    if status.workers:
        parts.append(_workers(status))
    else:
        parts.append(Text("no workers have joined", style="yellow"))
    if status.partitions:
        parts.append(_partitions(status))
    parts += _waits(status)
    if status.table_rows:
        rows = ", ".join(f"{name} {count:,}" for name, count in sorted(status.table_rows.items()))
        parts.append(Text(f"rows of tables: {rows}"))
    if status.rejected:
        parts.append(Text(f"refused pushes: {_reasons(status.rejected)}", style="yellow"))
    for worker in [worker for worker in status.left if worker.rejected][:_MOST_WORKERS]:
        parts.append(Text(f"  of {worker.name}, which left: {_reasons(worker.reasons)}", style="dim"))
    return Group(*parts)


def _headline(status: pb.StatusReply) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    if status.job_id:
        text.append(task(status), style="bold")
        text.append(f" · {mode(status)} · {len(status.clock)} shards · job {status.job_id} · ")
    text.append(status.state, style=_COLOURS.get(status.state, "cyan"))
    if status.reason:
        text.append(f": {status.reason}")
    return text


def _bar(status: pb.StatusReply) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    total = status.total_steps or None
    done = Text(f"{step(status)}/{total or '?'} steps")
    grid.add_row(ProgressBar(total=total, completed=step(status), width=40, pulse=total is None), done)
    return grid


def _numbers(status: pb.StatusReply, steps_per_s: float) -> Text:
    parts = [f"loss {status.loss:.6g}" if status.HasField("loss") else "loss –"]
    parts.append(f"{status.seconds:.1f} s")
    if steps_per_s:
        parts.append(f"{steps_per_s:.3g} steps/s")
        left_s = (status.total_steps - step(status)) / steps_per_s
        if status.state == "train" and left_s > 0:
            parts.append(f"{timedelta(seconds=round(left_s))} left")
    delays = f"staleness {mean_staleness(status):.2g}, most {max(status.staleness, default=0)}"
    parts += [f"version {status.version}", delays]
    parts.append(f"{_size(status.bytes_received)} in, {_size(status.bytes_sent)} out")
    return Text(" · ".join(parts))


def _workers(status: pb.StatusReply) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("worker", no_wrap=True)
    table.add_column("shards", no_wrap=True)
    for heading in ("step", "lag", "pushes", "refused", "silent"):
        table.add_column(heading, justify="right", no_wrap=True)
    # The one that gives way where the terminal is narrow.
    table.add_column("state")
    clock = status.clock
    for worker in status.workers[:_MOST_WORKERS]:
        own = [clock[shard] for shard in worker.shards if shard < len(clock)]
        table.add_row(
            Text(worker.name),
            ranges(worker.shards) or "–",
            str(min(own)) if own else "–",
            str(worker.lag),
            str(worker.pushes),
            str(worker.rejected),
            f"{worker.silent_s:.1f} s",
            Text(_state(worker, status), style=_COLOURS.get(worker.state.partition(":")[0], "")),
        )
    if len(status.workers) > _MOST_WORKERS:
        table.add_row(f"… and {len(status.workers) - _MOST_WORKERS} more")
    return table


def _partitions(status: pb.StatusReply) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("server", no_wrap=True)
    for heading in ("parameters", "version", "in", "out"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state")
    for partition in status.partitions:
        table.add_row(
            Text(f"{partition.partition} {partition.address}".rstrip()),
            f"{partition.elements:,}",
            str(partition.version),
            _size(partition.bytes_received),
            _size(partition.bytes_sent),
            Text(partition.state, style=_COLOURS.get(partition.state, "yellow")),
        )
    return table


def _state(worker: pb.WorkerStatus, status: pb.StatusReply) -> str:
    """Return the worker's state and, where they matter, what it was refused for and why it waits."""
    parts = [worker.state]
    if worker.reasons:
        parts.append(f"refused: {_reasons(worker.reasons)}")
    if worker.waits and any(wait.since_s >= _NOTABLE_WAIT_S for wait in status.waiting_for):
        parts.append(worker.waits)
    return "; ".join(parts)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def _waits(status: pb.StatusReply) -> list[RenderableType]:
    waits = [wait for wait in status.waiting_for if wait.since_s >= _NOTABLE_WAIT_S]
    lines: list[RenderableType] = [
        Text(f"waiting {wait.since_s:.1f} s: {wait.reason}", style="yellow") for wait in waits[:_MOST_WAITS]
    ]
    if len(waits) > _MOST_WAITS:
        lines.append(Text(f"… and {len(waits) - _MOST_WAITS} more", style="yellow"))
    return lines


def ranges(numbers: Sequence[int]) -> str:
    """Return rising numbers in short, such as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
