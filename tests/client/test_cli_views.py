"""What people and programs see of a status."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from paramserver.client import Update
from paramserver.client.cli.live import LiveView, ranges, render
from paramserver.client.cli.pace import Pace
from paramserver.client.cli.plain import PlainLines
from paramserver.client.cli.summary import summary
from paramserver.wire.v1 import paramserver_pb2 as pb


def text_of(view: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_summary_has_every_documented_key_and_is_json(status: pb.StatusReply) -> None:
    found = json.loads(json.dumps(summary(status)))
    documented = {
        "job",
        "mode",
        "version",
        "clock",
        "workers",
        "shards",
        "waiting_for",
        "staleness",
        "rejected",
        "bytes",
    }
    assert documented <= found.keys()
    assert (found["job"], found["mode"], found["version"], found["clock"]) == ("j1", "sync", 7, [7, 8, 7, 8])
    assert (found["step"], found["steps"], found["loss"]) == (7, 20, 0.25)
    assert found["staleness"] == {"0": 30, "2": 10}
    assert found["bytes"] == {"received": 480, "sent": 960}
    assert found["tables"] == {"emb": 1_234_567}
    assert found["waiting_for"][0]["worker"] == "w1"


def test_several_servers_are_told_one_by_one(status: pb.StatusReply) -> None:
    assert summary(status)["partitions"] == []
    status.partitions.add(state="ready", version=7, elements=65_536)
    status.partitions.add(partition=1, address="b:1", state="no server answers at b:1", start=65_536, elements=1000)
    first, second = summary(status)["partitions"]
    assert (first["partition"], first["address"], first["version"]) == (0, None, 7)
    assert (second["address"], second["start"], second["elements"]) == ("b:1", 65_536, 1000)
    shown = text_of(render(status))
    assert "65,536" in shown
    assert "no server answers at b:1" in shown


def test_the_summary_of_an_idle_server_says_that_there_is_no_job() -> None:
    found = summary(pb.StatusReply(state="idle", reason="no job was submitted"))
    assert (found["job"], found["mode"], found["loss"], found["clock"]) == (None, None, None, [])


def test_the_view_shows_job_workers_and_whom_the_barrier_waits_for(status: pb.StatusReply) -> None:
    shown = text_of(render(status, steps_per_s=2.0))
    for part in (
        "linear_regression · sync · 4 shards · job j1 · train",
        "7/20 steps",
        "loss 0.25",
        "2 steps/s · 0:00:06 left",
        "staleness 0.5, most 2",
        "480 B in, 960 B out",
        "rows of tables: emb 1,234,567",
        "waiting 2.5 s: shard 0 is awaited from w1",
        "refused pushes: 2 FENCED",
    ):
        assert part in shown
    late = next(line for line in shown.splitlines() if line.startswith("w1"))
    assert late.split() == ["w1", "0,", "2", "7", "1", "14", "0", "2.5", "s", "ready"]


def test_the_view_says_what_was_refused_of_whom_and_why_somebody_waits(status: pb.StatusReply) -> None:
    status.workers[0].waits = "shard 1 at step 8 waits: round 7 misses shards 0, 2"
    status.workers[1].reasons["not_finite"] = 2
    status.left.append(pb.WorkerStatus(name="gone", rejected=3, reasons={"norm": 3}))
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(render(status))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ready; shard 1 at step 8 waits: round 7 misses shards 0, 2" in shown
    assert "ready; refused: 2 not_finite" in shown
    assert "of gone, which left: 3 norm" in shown
    found = summary(status)
    assert found["workers"][0]["waits"] == status.workers[0].waits
    assert found["workers"][1]["reasons"] == {"not_finite": 2}
    assert found["left"] == [{"name": "gone", "pushes": 0, "rejected": 3, "reasons": {"norm": 3}}]


def test_the_view_takes_brackets_in_names_as_they_are(status: pb.StatusReply) -> None:
    status.workers[0].name = "[red]w[/red]"
    status.waiting_for[0].reason = "[bold]"
    assert "[red]w[/red]" in text_of(render(status))
    assert "2.5 s: [bold]" in text_of(render(status))


def test_the_view_of_many_workers_stays_short(status: pb.StatusReply) -> None:
    status.workers.extend(pb.WorkerStatus(name=f"x{n}") for n in range(500))
    status.waiting_for.extend(pb.Wait(since_s=1.0, reason="r") for _ in range(500))
    shown = text_of(render(status)).splitlines()
    assert len(shown) < 30
    assert "… and 490 more" in [line.strip() for line in shown]


def test_the_view_of_nothing_is_no_error() -> None:
    assert "starting" in text_of(LiveView())
    assert "no workers have joined" in text_of(render(pb.StatusReply(state="idle")))


@pytest.mark.parametrize(
    ("numbers", "short"), [([], ""), ([4], "4"), ([0, 1, 2, 3], "0-3"), ([0, 2, 3, 7], "0, 2-3, 7")]
)
def test_ranges(numbers: list[int], short: str) -> None:
    assert ranges(numbers) == short


def test_the_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.steps_per_s == 0
    for second in range(100):
        steps = 10 * second if second < 50 else 500 + 3 * (second - 50)
        pace.note(pb.StatusReply(seconds=second, clock=[steps, steps + 1]))
    assert pace.steps_per_s == pytest.approx(3)
    pace.note(pb.StatusReply(seconds=0, clock=[0]))
    assert pace.steps_per_s == 0


def test_on_a_narrow_terminal_a_long_wait_does_not_squeeze_the_numbers_out(status: pb.StatusReply) -> None:
    for worker in status.workers:
        worker.waits = "shard 1 at step 8 waits: round 7 misses shards 0, 2, and so it goes on for a long line"
    lines = text_of(render(status), width=80).splitlines()
    first = next(line for line in lines if line.startswith("w1"))
    assert first.split()[:10] == ["w1", "0,", "2", "7", "1", "14", "0", "2.5", "s", "ready;"]
    assert max(map(len, lines)) <= 80
    assert "a long line" in " ".join(" ".join(lines).split())


def lines_of(updates: list[tuple[float, pb.StatusReply]]) -> list[str]:
    out, now = io.StringIO(), [0.0]
    plain = PlainLines(out, clock=lambda: now[0])
    for second, status in updates:
        now[0] = second
        plain.show(Update(status, []))
    return out.getvalue().splitlines()


def progress(step: int, state: str = "train") -> pb.StatusReply:
    return pb.StatusReply(state=state, clock=[step], total_steps=1000, seconds=step / 1000)


def test_a_fast_run_writes_its_states_and_not_every_tenth() -> None:
    lines = lines_of([(step / 1000, progress(step)) for step in range(1000)] + [(1.0, progress(1000, "done"))])
    assert [line.split()[:3] for line in lines] == [["train", "step", "0/1000"], ["done", "step", "1000/1000"]]


def test_a_run_of_minutes_writes_a_line_a_tenth() -> None:
    lines = lines_of([(step / 20, progress(step)) for step in range(1000)])
    assert [line.split()[2] for line in lines] == [f"{step}/1000" for step in range(0, 1000, 100)]


def test_a_run_that_stands_still_says_so_and_whom_it_waits_for() -> None:
    stuck = progress(5)
    stuck.waiting_for.add(since_s=9.0, reason="shard 0 is awaited")
    lines = lines_of([(second, stuck) for second in range(25)])
    assert [line.strip() for line in lines if "waiting" in line] == ["waiting 9.0 s: shard 0 is awaited"] * 3
    assert len(lines) == 6
