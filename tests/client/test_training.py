"""Training from the first to the last process, as a user would: the API and the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.client import Client, Job, JobFailed, Point, RequestError, TaskError, Unreachable, Update, train
from paramserver.client.cli import main
from paramserver.client.launch import LocalCluster
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.v1 import paramserver_pb2 as pb

LINEAR: dict[str, Any] = {
    "task": {"use": "linear_regression"},
    "data": {"source": "builtin:linear", "test": "builtin:linear", "batch_size": 0},
    "train": {"steps": 40, "dtype": "float64"},
    "optimizer": {"learning_rate": 0.5},
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


@pytest.fixture(autouse=True)
def _own_signals() -> Any:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def changed(**sections: dict[str, Any]) -> Job:
    return Job.from_dict({key: {**LINEAR.get(key, {}), **sections.get(key, {})} for key in {*LINEAR, *sections}})


def toml(tables: dict[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"{section}.{key} = {json.dumps(value)}" for section, table in tables.items() for key, value in table.items()
    )


def run_cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def gradient_descent(steps: int, rate: float) -> tuple[float, float]:
    """Return slope and intercept after plain gradient descent on the whole data in one process."""
    random = np.random.RandomState(20)
    x = random.uniform(size=1000)
    y = 2 * x + 1 + 0.1 * random.standard_normal(1000)
    w = b = 0.0
    for _ in range(steps):
        residual = w * x + b - y
        w, b = w - rate * 2 * np.mean(residual * x), b - rate * 2 * np.mean(residual)
    return w, b


def test_train_gives_what_gradient_descent_in_one_process_gives(tmp_path: Path) -> None:
    updates: list[Update] = []
    result = train(changed(), workers=2, run=tmp_path / "run", progress=updates.append)
    w, b = gradient_descent(40, 0.5)
    assert (result.theta["w"].item(), result.theta["b"].item()) == pytest.approx((w, b), rel=1e-10)
    assert (result.status, result.steps) == ("done", 40)
    assert [point.step for point in result.history] == list(range(1, 41))
    assert result.history == [point for update in updates for point in update.points]
    assert result.theta_sha256 == theta_sha256(result.theta)
    assert result.metrics["test_rmse"] == pytest.approx(0.2, abs=0.1)

    files = {str(path.relative_to(result.run)) for path in result.run.rglob("*") if path.is_file()}
    logs = {"logs/server.log", "logs/worker-0.log", "logs/worker-1.log"}
    plots = {"loss.png", "loss.svg"}
    kept = {name for name in files if name.startswith("state/")}
    assert "state/server.json" in kept
    assert files - kept == logs | plots | {
        "job.json",
        "origin.json",
        "history.jsonl",
        "theta.npz",
        "theta.safetensors",
        "result.json",
    }
    with np.load(result.run / "theta.npz") as theta:
        assert theta_sha256(dict(theta)) == result.theta_sha256
    lines = (result.run / "history.jsonl").read_text().splitlines()
    assert [Point(**json.loads(line)) for line in lines] == result.history
    assert json.loads((result.run / "result.json").read_text()) == result.summary()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_two_workers_learn_digits(tmp_path: Path, mode: str) -> None:
    job = Job.from_dict(
        {
            "task": {"use": "softmax_regression"},
            "data": {"source": "builtin:digits/train", "test": "builtin:digits/test", "batch_size": 64},
            "train": {"mode": mode, "epochs": 80},
            "optimizer": {"learning_rate": 1.0, "schedule": "constant" if mode == "sync" else "cosine"},
        }
    )
    result = train(job, run=tmp_path / "run")
    assert result.metrics["test_accuracy"] >= 0.95
    assert result.steps == 80 * 6  # 359 or 360 rows a shard in batches of 64


def test_a_worker_that_is_killed_changes_no_bit(tmp_path: Path) -> None:
    (tmp_path / "mortal.py").write_text(
        "import os, signal, time\n"
        "from pathlib import Path\n"
        "from paramserver.worker.tasks.linear import LinearRegression\n"
        "class Mortal(LinearRegression):\n"
        "    computed = 0\n"
        "    def loss_and_grad(self, params, batch):\n"
        "        self.computed += 1\n"
        "        mark = Path(__file__).with_name('killed')\n"
        "        seen = Path(__file__).with_name('a') / 'logs' / 'supervisor.log'\n"
        "        if self.computed == 50 and not mark.exists():\n"
        "            mark.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        while self.computed > 60 and mark.exists() and not seen.exists():\n"
        "            time.sleep(0.01)\n"
        "        return super().loss_and_grad(params, batch)\n"
    )
    job = changed(task={"use": "mortal.py:Mortal"}, train={"steps": 200})
    disturbed = train(job, workers=3, base=tmp_path, run=tmp_path / "a")
    assert (tmp_path / "killed").exists()
    assert "killed by signal 9" in (tmp_path / "a/logs/supervisor.log").read_text()
    calm = train(job, workers=2, base=tmp_path, run=tmp_path / "b")
    assert disturbed.theta_sha256 == calm.theta_sha256
    assert [point.loss for point in disturbed.history] == [point.loss for point in calm.history]


def test_a_users_task_and_data_are_found_from_the_job_files_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (folder / "mean.py").write_text(
        "import numpy as np\n"
        "class Mean:\n"
        "    def init(self, rng, batch): return {'m': np.zeros(1, batch.y.dtype)}\n"
        "    def loss_and_grad(self, params, batch):\n"
        "        r = params['m'] - batch.y\n"
        "        return float(np.mean(r * r)), {'m': 2 * r.mean(keepdims=True)}\n"
    )
    (folder / "data.csv").write_text("x,y\n" + "".join(f"0,{y}\n" for y in range(10)))
    tables: dict[str, dict[str, Any]] = {
        "task": {"use": "mean.py:Mean"},
        "data": {"source": "data.csv", "test": "data.csv", "label": "y", "shards": 3, "batch_size": 0},
        "train": {"steps": 100},
    }
    (folder / "job.toml").write_text(toml(tables))
    assert run_cli("train", "project/job.toml", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found.keys() >= {"status", "steps", "seconds", "loss", "metrics", "theta_sha256", "run"}
    assert (found["status"], found["steps"]) == ("done", 100)
    assert found["metrics"] == {"test_loss": pytest.approx(np.var(np.arange(10)))}
    assert (tmp_path / found["run"]).parent == tmp_path / "runs"
    with np.load(tmp_path / found["run"] / "theta.npz") as theta:
        assert theta["m"] == pytest.approx(4.5, rel=1e-5)
    assert captured.err.splitlines()[-1].startswith("done")


def test_one_server_serves_the_commands_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = changed(train={"steps": 25})
    with LocalCluster(1, tmp_path, tmp_path) as cluster:
        at = ("--server", cluster.address)
        assert run_cli("evaluate", *at) == 2
        assert "has no job" in capsys.readouterr().err
        assert run_cli("stop", *at) == 2
        assert run_cli("export", *at, "--out", str(tmp_path / "theta.npz")) == 2

        result = train(job, server=cluster.address, run=tmp_path / "run")
        capsys.readouterr()

        assert run_cli("status", *at, "--json") == 0
        status = json.loads(capsys.readouterr().out)
        assert (status["state"], status["version"], status["clock"]) == ("done", 25, [25] * 4)
        assert run_cli("status", *at) == 0
        assert "25/25 steps" in capsys.readouterr().out
        assert run_cli("watch", *at, "--json") == 0
        assert json.loads(capsys.readouterr().out)["state"] == "done"
        assert run_cli("evaluate", *at, "--json") == 0
        assert json.loads(capsys.readouterr().out)["metrics"] == result.metrics
        for name in ("theta.npz", "theta.safetensors"):
            assert run_cli("export", *at, "--out", str(tmp_path / name), "--json") == 0
            assert json.loads(capsys.readouterr().out)["theta_sha256"] == result.theta_sha256
            assert (tmp_path / name).read_bytes() == (result.run / name).read_bytes()

        long = train_until_stopped(cluster.address, tmp_path / "stopped")
        assert (long.status, long.reason) == ("stopped", "enough")
        assert theta_sha256(long.theta) == json.loads((long.run / "result.json").read_text())["theta_sha256"]


def train_until_stopped(address: str, run: Path) -> Any:
    with Client(address) as other:
        stopped: list[int] = []

        def stop_once(update: Update) -> None:
            if update.points and not stopped:
                stopped.append(other.stop("enough"))

        return train(changed(train={"steps": 100_000_000}), server=address, run=run, progress=stop_once)


def test_the_demonstration_reaches_the_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("demo", "--workers", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"theta", "closed_form", "loss", "round_ms"}
    assert found["theta"] == pytest.approx(found["closed_form"], abs=1e-9)


# Several async workers progress as evenly as the machine lets them, which nothing bounds; in ssp the bound is 3 steps.
@pytest.mark.parametrize(("mode", "workers"), [("async", 1), ("ssp", 2)])
def test_the_demonstration_comes_close_in_other_modes(
    mode: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("demo", "--mode", mode, "--workers", str(workers)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    differences = {row[0]: float(row[-1]) for row in rows if row[0] in ("slope", "intercept")}
    assert differences.keys() == {"slope", "intercept"}
    assert max(differences.values()) < 1e-2


def test_wrong_requests_exit_with_2_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {
        "task.uze": ({"task": {"use": "linear_regression", "uze": 1}}, "did you mean 'use'"),
        "task.use": ({"task": {"use": "linear_regresion"}}, "did you mean 'linear_regression'"),
        "file": ({"task": {"use": "nowhere.py:Net"}}, "nowhere.py"),
        "missing": ({"data": {"source": "nowhere.csv"}}, "nowhere.csv"),
        "shards": ({"data": {"source": "builtin:linear", "shards": 2000}}, "2000 shards"),
        "test": ({"data": {"source": "builtin:linear", "test": "nowhere.csv"}}, "nowhere.csv"),
    }
    job = tmp_path / "job.toml"
    for name, (change, message) in cases.items():
        job.write_text(toml({**LINEAR, **change}))
        assert run_cli("train", "job.toml", "--json") == 2, name
        captured = capsys.readouterr()
        assert captured.out == "", name
        last = captured.err.splitlines()[-1]
        assert last.startswith("error: "), name
        assert message in last, name
        assert [path.name for path in tmp_path.iterdir()] == ["job.toml"], name
    assert run_cli("train", "nowhere.toml") == 2
    assert run_cli("train", "job.toml", "--workers", "0") == 2
    assert run_cli("demo", "--mode", "sinc") == 2
    assert run_cli("train") == 2
    assert run_cli("status", "--server", "nonsense") == 2
    assert run_cli("export", "--out", "theta.pkl") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


def test_a_server_that_is_not_there_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["watch"], ["evaluate"], ["export", "--out", "x.npz"], ["stop"]):
        assert run_cli(*command, "--server", "127.0.0.1:1", "--timeout", "0.1") == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: no server answers at 127.0.0.1:1 within 0.1 s")
        assert len(captured.err.splitlines()) == 1


def watched(*replies: pb.WatchReply) -> Any:
    return lambda *_: iter(replies)


def ended(state: str, reason: str) -> pb.WatchReply:
    status = pb.StatusReply(job_id="j1", state=state, reason=reason, clock=[3], seconds=1.5)
    return pb.WatchReply(status=status, points=[pb.Point(step=3, loss=0.5, seconds=1.5)])


def test_a_failed_job_exits_with_1_and_keeps_its_record(
    control: tuple[Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, address = control
    service.script.update(
        Submit=[lambda request, _: pb.SubmitReply(job_id=request.job_id)],
        Watch=[watched(ended("failed", "every worker is gone"))],
    )
    (tmp_path / "job.toml").write_text(toml({**LINEAR, "data": {"source": "builtin:linear"}}))
    run = tmp_path / "run"
    assert run_cli("train", str(tmp_path / "job.toml"), "--server", address, "--run", str(run), "--json") == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["status"], found["reason"], found["steps"]) == ("failed", "every worker is gone", 3)
    assert captured.err.splitlines()[-1] == "error: every worker is gone"
    assert json.loads((run / "result.json").read_text()) == found
    assert len((run / "history.jsonl").read_text().splitlines()) == 1


def test_a_failure_whose_cause_is_the_request_is_that_error(control: tuple[Any, str], tmp_path: Path) -> None:
    service, address = control
    service.script.update(
        Submit=[lambda request, _: pb.SubmitReply(job_id=request.job_id)],
        Watch=[watched(ended("failed", "worker w0: TaskError: shard 1, step 3: gradient 'w' holds nan"))],
    )
    with pytest.raises(TaskError, match=r"^worker w0: shard 1, step 3: gradient 'w' holds nan$"):
        train(changed(data={"test": ""}), server=address, run=tmp_path / "run")


def test_a_client_that_gives_up_stops_the_job_that_it_has_submitted(control: tuple[Any, str], tmp_path: Path) -> None:
    service, address = control

    def trains(_request: Any, _context: grpc.ServicerContext) -> Any:
        yield ended("train", "")
        service.over.wait()

    service.script.update(
        Submit=[lambda request, _: pb.SubmitReply(job_id=request.job_id)],
        Watch=[trains],
        Stop=[lambda *_: pb.StopReply()],
    )

    def interrupt(_: Update) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(changed(data={"test": ""}), server=address, run=tmp_path / "run", progress=interrupt)
    assert "KeyboardInterrupt" in service.requests[-1].reason
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


def test_a_server_that_vanishes_for_good_leaves_the_history(
    control: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, address = control

    def breaks(_request: Any, context: grpc.ServicerContext) -> Any:
        yield ended("train", "")
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    def gone(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    service.script.update(Submit=[lambda request, _: pb.SubmitReply(job_id=request.job_id)], Watch=[breaks, gone])
    monkeypatch.setattr("paramserver.client.training.Client", lambda address: Client(address, timeout_s=0.2))
    with pytest.raises(Unreachable):
        train(changed(data={"test": ""}), server=address, run=tmp_path / "run")
    assert (tmp_path / "run" / "history.jsonl").exists()
    with pytest.raises(RequestError):
        train(changed(data={"test": ""}), server="nonsense", run=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_job_that_fails_before_its_first_step_keeps_its_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.exit('no fun today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(JobFailed, match="no fun today"):
        train(changed(), run=tmp_path / "run")
    assert "no fun today" in (tmp_path / "run" / "logs" / "server.log").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
