"""A state directory: what was saved comes back bit by bit, or is refused with the reason; never something else."""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import paramserver.server.snapshot as snapshot_module
from paramserver.server.enginestate import EngineState, ShardRecord
from paramserver.server.snapshot import Parameters, Snapshot
from paramserver.server.snapshots import EPOCHS_PER_START, StateDirectory
from paramserver.wire.errors import StateError
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.job import Job, TrainSection
from paramserver.wire.layout import Array, Layout
from paramserver.wire.moments import Moments
from paramserver.wire.v1 import paramserver_pb2 as pb

JOB = Job.from_dict({"task": {"use": "t"}, "data": {"source": "d", "shards": 2}})


def snapshot(version: int = 7, job_id: str = "j", job: Job = JOB, scale: float = 1.0) -> Snapshot:
    layout = Layout([("w", (2, 3)), ("empty", (0,)), ("b", ())], "float32")
    theta = np.arange(layout.size, dtype="<f4") * scale + version
    engine = EngineState(
        phase="train",
        reason="",
        version=version,
        shards=(
            ShardRecord(clock=version, rows=10, pinned_to="w0", loss=0.1, samples=4, missed=0),
            ShardRecord(clock=version, rows=11, pinned_to=None, loss=math.nan, samples=0, missed=2),
        ),
        total_steps=100,
        finished_steps=version,
        samples=77,
        loss=math.inf,
        elapsed_s=1.25,
        staleness={0: 5, 3: 1},
        calm_losses=2,
        calm_gradients=1,
    )
    history: dict[str, Array] = {
        "step": np.arange(version, dtype="<u8"),
        "loss": np.linspace(0, 1, version),
    }
    return Snapshot(
        job_id,
        job,
        engine,
        Parameters(layout, theta, {"mean": theta * 2, "square": theta * 3}),
        pb.Census(rows=21, features=2, classes=3),
        Moments(21, np.array([0.5, 1.5]), np.array([2.0, 3.0])),
        history,
    )


def plain(s: Snapshot) -> dict[str, Any]:
    """Return everything in a snapshot in a form that compares by value; NaN equals NaN."""
    p = s.parameters
    return {
        "job": (s.job_id, s.job),
        "engine": None if s.engine is None else repr(s.engine),
        "census": None if s.census is None else s.census.SerializeToString(),
        "moments": None if s.moments is None else (s.moments.count, s.moments.to_flat().tobytes()),
        "theta": None if p is None else (p.layout.tensors, p.theta.dtype, p.theta.tobytes()),
        "optimizer": None if p is None else {name: a.tobytes() for name, a in p.optimizer_state.items()},
        "train": s.train,
        "history": {name: (a.dtype, a.tobytes()) for name, a in (s.history or {}).items()},
    }


@contextmanager
def opened(path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(path)
    yield directory
    directory.close()


def reopened(path: Path) -> Snapshot | None:
    with opened(path) as directory:
        return directory.take_newest()


def listing(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def refused_untouched(path: Path, message: str) -> None:
    before = listing(path)
    with pytest.raises(StateError, match=message):
        StateDirectory(path)
    assert listing(path) == before


SWITCHED = replace(snapshot(), train=TrainSection(mode="ssp", staleness=5))


@pytest.mark.parametrize(
    "saved",
    [snapshot(), snapshot(version=0), Snapshot("j", JOB), SWITCHED],
    ids=["full", "first", "job", "switched"],
)
def test_what_was_saved_comes_back_bit_by_bit(tmp_path: Path, saved: Snapshot) -> None:
    with opened(tmp_path / "new" / "state") as directory:
        assert directory.take_newest() is None
        directory.save(saved)
    found = reopened(tmp_path / "new" / "state")
    assert found is not None
    assert plain(found) == plain(saved)


def test_any_reader_of_safetensors_reads_theta_and_its_hash(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        saved = directory.save(snapshot())
    tensors = load_file(saved.file)
    theta = {name: tensors[f"theta/{name}"] for name in ("w", "empty", "b")}
    assert theta["w"].tolist() == [[7, 8, 9], [10, 11, 12]]
    assert tensors["optimizer/mean"].tolist() == [14, 16, 18, 20, 22, 24, 26]
    assert theta_sha256(theta) == saved.theta_sha256
    with safe_open(saved.file, "numpy") as file:
        record = json.loads(file.metadata()["snapshot"])
    assert (record["version"], record["theta_sha256"]) == (7, saved.theta_sha256)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        files = [directory.save(snapshot(version)).file for version in range(5)]
    assert sorted(tmp_path.glob("*.safetensors")) == files[-2:]
    assert sorted(listing(tmp_path)) == sorted([*(f.name for f in files[-2:]), "server.json"])


def test_a_flipped_bit_anywhere_is_detected_and_the_one_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thousands of openings need not reach the disk.
    monkeypatch.setattr("os.fsync", lambda _: None)
    with opened(tmp_path) as directory:
        directory.save(snapshot(6))
        newest = directory.save(snapshot(7)).file
    whole = newest.read_bytes()
    # Every region, from the length in front to the last tensor, but not every byte: each costs milliseconds.
    for position in [*range(16), *range(16, len(whole), 13), len(whole) - 1]:
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        newest.write_bytes(broken)
        caplog.clear()
        found = reopened(tmp_path)
        assert found is not None, position
        assert found.version == 6, position
        assert "is broken" in caplog.text
        assert str(newest) in caplog.text


@pytest.mark.parametrize("length", [0, 1, 8, 100, -1])
def test_a_torn_snapshot_is_passed_over_and_later_removed_while_the_good_one_stays(tmp_path: Path, length: int) -> None:
    with opened(tmp_path) as directory:
        good = directory.save(snapshot(6)).file
        newest = directory.save(snapshot(7)).file
    newest.write_bytes(newest.read_bytes()[:length])
    with opened(tmp_path) as directory:
        found = directory.take_newest()
        assert found is not None
        assert found.version == 6
        latest = directory.save(snapshot(8)).file
    assert sorted(tmp_path.glob("*.safetensors")) == [good, latest]


def test_a_lengthened_snapshot_is_detected(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        newest = directory.save(snapshot(7)).file
    newest.write_bytes(newest.read_bytes() + b"\0")
    refused_untouched(tmp_path, "no snapshot is whole")


def test_when_both_are_broken_the_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        files = [directory.save(snapshot(version)).file for version in (6, 7)]
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    refused_untouched(tmp_path, rf"(?s)no snapshot is whole.*{files[1].name}.*{files[0].name}")


def test_what_was_being_written_when_the_server_died_is_ignored(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(7))
    (tmp_path / "snapshot.partial").write_bytes(b"half")
    (tmp_path / "server.json.partial").write_bytes(b"half")
    found = reopened(tmp_path)
    assert found is not None
    assert found.version == 7
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "server.json.partial").write_bytes(b"half")
    assert reopened(fresh) is None


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    refused_untouched(tmp_path, r"holds 'thesis.tex' and no server.json")


def test_snapshots_without_their_mark_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(7))
    (tmp_path / "server.json").unlink()
    refused_untouched(tmp_path, "no server.json")


def test_a_flipped_bit_anywhere_in_the_mark_is_detected(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    mark = tmp_path / "server.json"
    whole = mark.read_bytes()
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 7
        mark.write_bytes(broken)
        refused_untouched(tmp_path, "is broken")


def test_a_newer_format_is_refused_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(6))
        monkeypatch.setattr(snapshot_module, "FORMAT", 2)
        directory.save(snapshot(7))
    monkeypatch.undo()
    refused_untouched(tmp_path, "has format 2, this program reads up to format 1")


def test_a_newer_mark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr("paramserver.server.snapshots._mark_text.__defaults__", (2,))
        with opened(tmp_path):
            pass
    refused_untouched(tmp_path, "has format 2")


def test_the_next_job_takes_the_place_of_the_last_and_never_falls_back_to_it(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(6))
        old = directory.save(snapshot(7)).file
        kept = old.read_bytes()
        new = directory.save(Snapshot("k", JOB)).file
    assert list(tmp_path.glob("*.safetensors")) == [new]
    # As if the server had died between writing the one and removing the other.
    old.write_bytes(kept)
    found = reopened(tmp_path)
    assert found is not None
    assert found.job_id == "k"
    new.write_bytes(new.read_bytes()[:-1])
    refused_untouched(tmp_path, "no snapshot is whole")


def test_clear_forgets_the_job(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(7))
        directory.clear()
    assert reopened(tmp_path) is None


def test_what_was_cleared_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, list[str]]] = []
    with opened(tmp_path) as directory:
        directory.save(snapshot(7))
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "fsync", lambda fd: synced.append((os.readlink(f"/proc/self/fd/{fd}"), sorted(listing(tmp_path))))
            )
            directory.clear()
        # The directory is synced when nothing but its mark is left.
        assert synced == [(str(tmp_path), ["server.json"])]
        directory.save(snapshot(8))
        for where in ("pathlib.Path.unlink", "os.fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(where, fail)
                with pytest.raises(StateError, match="Input/output error"):
                    directory.clear()


def test_one_server_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(7))
        refused_untouched(tmp_path, "another server uses it")


def test_every_start_has_epochs_of_its_own(tmp_path: Path) -> None:
    firsts = []
    for _ in range(3):
        with opened(tmp_path) as directory:
            firsts.append(directory.first_epoch)
    assert firsts == [0, EPOCHS_PER_START, 2 * EPOCHS_PER_START]


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_saved(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(6))
        before = listing(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(StateError, match="File too large"):
                directory.save(snapshot(7))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert listing(tmp_path) == before
        directory.save(snapshot(8))
    found = reopened(tmp_path)
    assert found is not None
    assert found.version == 8


def test_a_failing_disk_is_an_error_wherever_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as directory:
        directory.save(snapshot(6))
        for where in ("os.fsync", "pathlib.Path.rename", "pathlib.Path.open"):
            with monkeypatch.context() as context:
                context.setattr(where, fail)
                with pytest.raises(StateError, match="Input/output error"):
                    directory.save(snapshot(7))
    found = reopened(tmp_path)
    assert found is not None
    assert found.version in (6, 7)


def fail(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_a_snapshot_whose_name_may_be_lost_leaves_its_number_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fail_on_directories(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            fail()
        fsync(descriptor)

    with opened(tmp_path) as directory:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_on_directories)
            for version in range(7):
                with pytest.raises(StateError, match="Input/output error"):
                    directory.save(snapshot(version))
        # As if the process died before it had removed what is left over.
        monkeypatch.setattr(directory, "_remove_others", lambda: None)
        directory.save(snapshot(7))
    found = reopened(tmp_path)
    assert found is not None
    assert found.version == 7
    numbers = [file.name[:10] for file in tmp_path.glob("*.safetensors")]
    assert len(numbers) == len(set(numbers)) == 8


def test_a_new_directory_is_on_the_disk_with_all_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with opened(tmp_path / "a" / "b" / "state"):
        pass
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused_untouched(tmp_path, "Permission denied")


@pytest.mark.parametrize("where", ["file", "/proc/paramserver"])
def test_a_path_that_can_be_no_directory_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="state directory"):
        StateDirectory(tmp_path / where)


def test_what_came_after_a_version_can_be_forgotten(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    for version in (5, 7):
        directory.save(snapshot(version), common=5)
    directory.go_on_from(snapshot(0), 7)
    assert [s.version for s in directory.whole()] == [7, 5]
    directory.go_on_from(snapshot(0), 5)
    assert [s.version for s in directory.whole()] == [5]
    directory.save(snapshot(6), common=5)
    directory.close()
    found = StateDirectory(tmp_path)
    assert [s.version for s in found.whole()] == [6, 5]
    found.close()
