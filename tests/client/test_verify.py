"""A run that is computed again from what is known of its versions: the same bits, or the first version that differs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from paramserver.client import Job, train
from paramserver.client.cli.entry import app
from paramserver.client.verify import contributions, verify
from paramserver.server.provenance import FILE
from paramserver.wire.errors import RequestError
from server.inprocess import at_once, slower
from server.test_log import SHARDS, STEPS, Logged, job

ELASTIC = {
    "train__local_steps": 2,
    "train__local_update": "elastic",
    "train__local_learning_rate": 0.1,
    "train__elasticity": 0.3,
    "server__durability": "snapshot",
}
JOBS: dict[str, dict[str, Any]] = {
    "sync": {"train__mode": "sync"},
    "schedule": {"train__mode": "sync", "optimizer__schedule": "cosine", "optimizer__warmup_steps": 2},
    "quorum": {"train__mode": "sync", "train__quorum": 2},
    "local": {"train__mode": "sync", "train__local_steps": 2},
    "elastic": ELASTIC | {"train__mode": "sync"},
    "elastic-async": ELASTIC,
    "async": {},
    "ssp": {"train__mode": "ssp", "train__staleness": 2},
    "compensated": {"train__delay_compensation": 0.5, "optimizer__name": "sgd"},
    "standardized": {"data__standardize": True},
}


def ran(folder: Path, **changes: Any) -> Logged:
    training = Logged(folder / "state", job(**{"server__hash_every": 2, **changes}))
    # Who is slower computes what the task says, in one step.
    training.finish(at_once, at_once if "train__local_steps" in changes else slower(4))
    return training


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_a_run_computed_again_has_the_same_losses_and_hashes(tmp_path: Path, changes: dict[str, Any]) -> None:
    training = ran(tmp_path, **changes)
    version = training.run.engine.version
    found = verify(tmp_path, Path.cwd())
    assert found.same, found.reason
    assert (found.start, found.version, found.differs) == (0, version, None)
    # Every other version, the first, and the last.
    assert found.hashes >= version // 2 + 1
    assert found.losses == (training.run.engine.samples and sum(training.run.engine.staleness.values()))


@pytest.mark.parametrize("changes", [{"train__mode": "sync"}, JOBS["elastic"]], ids=["sync", "elastic"])
def test_it_may_begin_at_a_snapshot(tmp_path: Path, changes: dict[str, Any]) -> None:
    class Often(Logged):
        def look(self) -> None:
            super().look()
            if self.run.engine.version == 5 and self.saver._taken[0] < 5:
                self.saver._take()

    Often(tmp_path / "state", job(**changes)).finish(at_once)
    found = verify(tmp_path, Path.cwd(), start=5)
    assert found.same, found.reason
    assert (found.start, found.version) == (5, STEPS)
    with pytest.raises(RequestError, match=r"no snapshot of version 3 in .*there are: 5, 8"):
        verify(tmp_path, Path.cwd(), start=3)


def changed(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / "state" / FILE) as connection:
        connection.execute(statement)
    connection.close()


def test_a_run_with_tables_is_computed_again(tmp_path: Path) -> None:
    """Rows are clipped and forgotten in it; what it forgets follows from the versions."""
    rng = np.random.default_rng(1)
    lines = [f"{rng.integers(2)} {a}:1 {b}:1\n" for a, b in np.sort(rng.integers(1, 40, (90, 2))) if a < b]
    (tmp_path / "rows.svm").write_text("".join(lines))
    tables = {
        "task": {"use": "factorization_machine", "options": {"rank": 2}},
        "data": {"source": "rows.svm", "shards": 3, "batch_size": 8},
        "train": {"steps": 30},
        "optimizer": {"name": "adam", "clip_norm": 0.1},
        "server": {"hash_every": 7, "table_max_rows": 30},
    }
    run = train(Job.from_dict(tables), workers=2, run=tmp_path / "run", base=tmp_path)
    found = verify(run.run)
    assert found.same, found.reason
    assert (found.version, found.theta_sha256) == (30, run.theta_sha256)
    assert found.hashes >= 5
    changed(run.run, "UPDATE contributions SET step = step + 1 WHERE version = 9")
    assert verify(run.run).differs == 9
    changed(run.run, "UPDATE policies SET train = replace(train, '\"sync\"', '\"ssp\"')")
    with pytest.raises(RequestError, match="it is not known how old a row was"):
        verify(run.run)


class Switching(Logged):
    def look(self) -> None:
        if self.run.engine.phase == "train" and self.run.engine.version == 5 and self.run.job.train.mode == "async":
            self.run.set_policy({"mode": "sync"})
        super().look()


def test_a_switched_policy_is_followed(tmp_path: Path) -> None:
    Switching(tmp_path / "state", job()).finish(at_once, slower(2))
    found = verify(tmp_path, Path.cwd())
    assert found.same, found.reason


@pytest.mark.parametrize(
    ("statement", "version"),
    [
        ("UPDATE contributions SET loss = loss + 1e-9 WHERE version = 7", 7),
        ("UPDATE contributions SET step = step + 1 WHERE version = 7", 7),
        ("UPDATE hashes SET theta_sha256 = 'x' WHERE version = 10", 10),
        # What is applied in another way shows in the hash of that version.
        ("UPDATE contributions SET samples = samples + 1, number = 1000 WHERE version = 8", 8),
        ("DELETE FROM contributions WHERE version = 7", None),
    ],
)
def test_the_first_version_that_differs_is_named(tmp_path: Path, statement: str, version: int | None) -> None:
    ran(tmp_path, optimizer__schedule="cosine")
    changed(tmp_path, statement)
    if version is None:
        with pytest.raises(RequestError, match="does not tell what made version 7; the next it knows is 8"):
            verify(tmp_path, Path.cwd())
        return
    found = verify(tmp_path, Path.cwd())
    assert not found.same
    assert (found.differs, found.version) == (version, version)
    assert f"version {version}" in found.reason


def test_a_version_tells_its_contributions_and_hash(tmp_path: Path) -> None:
    training = ran(tmp_path)
    origin = contributions(tmp_path, 6)
    (contribution,) = origin.contributions
    assert contribution.worker in ("w0", "w1")
    assert 0 <= contribution.shard < SHARDS
    assert contribution.computed_at < 6
    assert len(origin.theta_sha256) == 64
    assert contributions(tmp_path, 7).theta_sha256 == ""
    total = training.run.engine.version
    with pytest.raises(RequestError, match=f"known are versions 1 to {total}"):
        contributions(tmp_path, total + 1)
    with pytest.raises(RequestError, match="neither a run directory"):
        contributions(tmp_path / "elsewhere", 1)


def test_a_real_run_over_shared_memory_is_verified_by_the_command(tmp_path: Path) -> None:
    tables = job(train__steps=30, server__hash_every=7).model_dump()
    tables["data"]["source"] = "rows.py:rows"
    (tmp_path / "rows.py").write_text(
        "import numpy as np\n\ndef rows():\n    x = np.linspace(0, 1, 48).reshape(24, 2)\n    return x, x.sum(1)\n"
    )
    result = train(Job.from_dict(tables), workers=3, run=tmp_path / "run", base=tmp_path)
    found = CliRunner().invoke(app, ["verify", str(result.run)])
    assert found.exit_code == 0, found.output
    assert result.theta_sha256 in found.output
    assert "SAME: versions 0 to 90 came out as they were" in found.output
    told = CliRunner().invoke(app, ["log", "--version", "90", "--run", str(result.run)])
    assert result.theta_sha256 in told.output
    computed = CliRunner().invoke(app, ["log", "--version", "89", "--run", str(result.run), "--hash", "--json"])
    assert computed.exit_code == 0
    assert "computed_at" in computed.output
    changed(result.run, "UPDATE contributions SET samples = 1 WHERE version = 50")
    assert CliRunner().invoke(app, ["verify", str(result.run)]).exit_code == 1
