import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from paramserver.client import Job, Point
from paramserver.client.rundirectory import RunDirectory, fresh_path
from paramserver.wire.errors import RequestError

HISTORY = [Point(step, step, 0.1 * step, 3.0 / step, 100 * step) for step in range(1, 41)]


def test_a_finished_run_is_all_there(tmp_path: Path, job: Job) -> None:
    run = RunDirectory(job, tmp_path / "a" / "b")
    run.append(HISTORY[:1])
    run.append(HISTORY[1:])
    run.finish(job, HISTORY, {"w": np.ones(3)}, {"status": "done"})
    names = {
        "job.json",
        "history.jsonl",
        "theta.npz",
        "theta.safetensors",
        "loss.png",
        "loss.svg",
        "logs",
        "result.json",
    }
    assert {entry.name for entry in run.path.iterdir()} == names
    lines = (run.path / "history.jsonl").read_text().splitlines()
    assert [Point(**json.loads(line)) for line in lines] == HISTORY
    assert Job.from_json((run.path / "job.json").read_text()) == job
    assert json.loads((run.path / "result.json").read_text()) == {"status": "done"}
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ElementTree.parse(run.path / "loss.svg").getroot().tag.endswith("svg")


def test_the_same_history_draws_the_same_picture(tmp_path: Path, job: Job) -> None:
    pictures = []
    for name in ("a", "b"):
        run = RunDirectory(job, tmp_path / name)
        run.finish(job, HISTORY, {}, {})
        pictures.append((run.path / "loss.svg").read_bytes())
    assert pictures[0] == pictures[1]


def test_without_matplotlib_a_note_takes_the_place_of_the_picture(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "paramserver.client.plot", raising=False)
    run = RunDirectory(job, tmp_path / "run")
    run.finish(job, HISTORY, {}, {"status": "done"})
    assert "paramserver[plot]" in capsys.readouterr().err
    assert (run.path / "result.json").exists()
    assert not (run.path / "loss.png").exists()


def test_a_directory_in_use_is_refused_and_left_untouched(tmp_path: Path, job: Job) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RequestError, match="not empty"):
        RunDirectory(job, tmp_path)
    with pytest.raises(RequestError, match=r"mine\.txt"):
        RunDirectory(job, tmp_path / "mine.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_discarding_removes_what_was_made_and_nothing_else(tmp_path: Path, job: Job) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "earlier").mkdir()
    for path in ("empty", "runs/now", "new/deep/run"):
        run = RunDirectory(job, tmp_path / path)
        run.append(HISTORY)
        run.discard()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["empty", "runs", "runs/earlier"]


def test_two_runs_in_one_second_get_two_directories(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    paths = [RunDirectory(job).path for _ in range(3)]
    names = ["20260101-000000-linear_regression", *(f"20260101-000000-linear_regression-{n}" for n in (2, 3))]
    assert [path.name for path in paths] == names
    assert fresh_path(job) == Path("runs") / f"{names[0]}-4"


def test_the_name_of_a_users_task_makes_a_tame_directory_name(job: Job) -> None:
    own = job.model_copy(update={"task": job.task.model_copy(update={"use": "../dir/my model.py:Net/../x"})})
    assert fresh_path(own).parent == Path("runs")
