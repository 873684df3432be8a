"""The log of a run: what was acknowledged comes back bit by bit after a crash at any moment, or an error says why."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramserver.server.log as log_module
from paramserver.server.events import Apply
from paramserver.server.log import Log
from paramserver.server.logformat import SegmentName, encode, frames, read_record
from paramserver.server.provenance import Provenance
from paramserver.server.saver import Saver
from paramserver.server.session import Session
from paramserver.server.snapshot import Snapshot
from paramserver.server.snapshots import StateDirectory
from paramserver.server.store import Store
from paramserver.wire.errors import StateError
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job
from paramserver.worker.trainer import Gradient, Identity
from server.inprocess import DEADLINE_S, Training, at_once, slower

SHARDS, STEPS = 3, 8


def rows() -> tuple[Any, Any]:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(24, 2))
    return x, x @ [1.0, -2.0] + 0.5


def job(**changes: Any) -> Job:
    tables: dict[str, dict[str, Any]] = {
        "task": {"use": "linear_regression"},
        "data": {"source": f"{__name__}:rows", "shards": SHARDS, "batch_size": 2},
        "train": {"mode": "async", "steps": STEPS},
        "optimizer": {"name": "adam", "learning_rate": 0.1},
        "server": {"durability": "log", "snapshot_every_s": 3600.0},
    }
    for path, value in changes.items():
        section, key = path.split("__")
        tables[section][key] = value
    return Job.from_dict(tables)


def state_of(snapshot: Snapshot | None) -> dict[str, Any]:
    """Return what a snapshot holds in a form that compares by value, but for the times, which no replay repeats."""
    assert snapshot is not None
    assert snapshot.parameters is not None
    assert snapshot.engine is not None
    history = {name: column.tobytes() for name, column in (snapshot.history or {}).items()}
    return {
        "engine": repr(snapshot.engine.model_copy(update={"elapsed_s": 0.0})),
        "theta": snapshot.parameters.theta.tobytes(),
        "optimizer": {name: array.tobytes() for name, array in snapshot.parameters.optimizer_state.items()},
        "history": history,
        "train": snapshot.train,
    }


@pytest.fixture(autouse=True)
def close_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that takes milliseconds would be over before the disk has answered once."""
    monkeypatch.setattr(log_module, "AHEAD_VERSIONS", 1)


class Logged(Training):
    """A training whose run is kept in a state directory; `states` is what it was at every version."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.states: dict[int, dict[str, Any]] = {}
        self.folder = folder
        super().__init__(job, on_move=lambda _: self.look())

    def look(self) -> None:
        self.saver.look()
        if self.run.store is not None:
            self.states[self.run.store.version] = state_of(self.run.snapshot())

    async def _finish(self, computes: tuple[Any, ...]) -> None:
        directory = StateDirectory(self.folder)
        directory.save(Snapshot("job", self.run.job))
        self.run.log = self.log = Log(self.run, directory)
        self.run.provenance = Provenance(self.folder, "job", self.run.submitted, 0, self.run.job.train)
        self.saver = Saver(self.run, directory, self.log)
        try:
            await super()._finish(computes)
            await self.ended()
        finally:
            await self.saver.close()
            directory.close()

    async def ended(self) -> None:
        """Do what is due at the end, before everything is closed."""
        await self.saver.settled()


@contextmanager
def opened(folder: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(folder)
    yield directory
    directory.close()


def recovered(folder: Path) -> Snapshot:
    with opened(folder) as directory:
        found = directory.take_newest()
    assert found is not None
    return found


def copy_at_once(folder: Path, copy: Path) -> None:
    """Copy a directory as it was at one moment, although threads are writing to it."""

    def listing() -> list[tuple[str, int]]:
        return sorted((file.name, file.stat().st_size) for file in folder.iterdir())

    while True:
        with suppress(FileNotFoundError, shutil.Error):
            before = listing()
            shutil.copytree(folder, copy)
            if listing() == before:
                return
        shutil.rmtree(copy, ignore_errors=True)


def recovered_or_refused(folder: Path) -> Snapshot | str:
    """Return what a server would go on from, or why it would not start."""
    try:
        return recovered(folder)
    except StateError as error:
        return str(error)


class Crashing(Logged):
    """Keeps copies of the directory as a crash would leave it, and what was safe by then."""

    def __init__(self, folder: Path, job: Job, snapshot_at: int = 0) -> None:
        super().__init__(folder, job)
        self.crashes: list[tuple[Path, int]] = []
        self._snapshot_at = snapshot_at

    def look(self) -> None:
        super().look()
        if self._snapshot_at and self.run.engine.version == self._snapshot_at:
            self._snapshot_at = 0
            self.saver._take()
        # What is safe only grows, so that looking first leaves no excuse.
        safe = self.log.safe
        copy = self.folder.with_name(f"crash-{len(self.crashes)}")
        copy_at_once(self.folder, copy)
        self.crashes.append((copy, safe))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__mode": "ssp", "train__staleness": 1},
        {"train__delay_compensation": 0.5, "optimizer__name": "sgd"},
        {"train__staleness_scaling": True, "optimizer__clip_norm": 0.5, "train__dtype": "float64"},
        {"train__local_steps": 2, "optimizer__schedule": "cosine"},
    ],
    ids=["adam", "ssp", "compensated", "scaled", "local"],
)
def test_a_crash_at_any_moment_loses_nothing_that_was_safe(tmp_path: Path, changes: dict[str, Any]) -> None:
    training = Crashing(tmp_path / "state", job(**changes), snapshot_at=7)
    training.finish(at_once, slower(3))
    assert training.run.engine.version == SHARDS * STEPS
    replayed = 0
    for folder, safe in training.crashes:
        found = recovered(folder)
        assert found.version >= safe
        if found.parameters is not None:
            assert state_of(found) == training.states[found.version]
        replayed += found.version not in (0, 7, SHARDS * STEPS)
    assert replayed > STEPS


def test_history_and_end_come_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "AHEAD_VERSIONS", 0)
    training = Crashing(tmp_path / "state", job()).finish(at_once)
    folder = next(copy for copy, safe in training.crashes if safe == SHARDS * STEPS - 1)
    found = recovered(folder)
    assert found.engine is not None
    assert found.engine.finished_steps >= STEPS - 1
    assert found.history is not None
    assert found.history["step"].tolist() == list(range(1, found.engine.finished_steps + 1))
    points = training.run.history.after(0)[: found.engine.finished_steps]
    assert found.history["seconds"].tolist() == [point.seconds for point in points]


def kept(tmp_path: Path, count: int = 9, snapshot_at: int = 4) -> tuple[Path, dict[int, dict[str, Any]], int]:
    """Return a directory in which `count` contributions are safe, the states, and `count`."""
    training = Crashing(tmp_path / "state", job(optimizer__name="sgd"), snapshot_at)
    training.finish(at_once)
    folder = next(copy for copy, safe in training.crashes if safe >= count)
    safe = next(safe for copy, safe in training.crashes if copy == folder)
    return folder, training.states, safe


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of openings need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.usefixtures("fast")
def test_a_flipped_bit_anywhere_is_an_error_or_has_no_effect(tmp_path: Path) -> None:
    folder, states, safe = kept(tmp_path)
    outcomes = set()
    for file in logs(folder):
        whole = file.read_bytes()
        # Headers, records and notes: every region, but not every byte, since each costs a millisecond.
        for position in [*range(0, len(whole) - 200, 7), *range(max(0, len(whole) - 200), len(whole), 2)]:
            broken = bytearray(whole)
            broken[position] ^= 1 << position % 8
            file.write_bytes(broken)
            found = recovered_or_refused(folder)
            if isinstance(found, str):
                assert "acknowledged" in found
                assert str(file) in found
                outcomes.add("refused")
            else:
                assert found.version >= safe, (file, position)
                assert state_of(found) == states[found.version]
                outcomes.add("harmless")
        file.write_bytes(whole)
    assert outcomes == {"refused", "harmless"}


@pytest.mark.usefixtures("fast")
def test_a_log_cut_off_anywhere_gives_what_it_still_proves(tmp_path: Path) -> None:
    folder, states, _ = kept(tmp_path)
    file = logs(folder)[-1]
    whole = file.read_bytes()
    name = SegmentName.parse(file.name)
    assert name is not None
    versions = set()
    for length in range(0, len(whole), 5):
        file.write_bytes(whole[:length])
        promised = max((frame.safe for frame in frames(whole[:length], name.mark)), default=0)
        found = recovered(folder)
        assert found.version >= promised
        assert state_of(found) == states[found.version]
        versions.add(found.version)
    assert len(versions) > 3


def test_what_was_never_synced_may_arrive_in_any_order(tmp_path: Path) -> None:
    """Power fails while a group is being synced: of its frames the disk has the later one only."""
    folder, states, _ = kept(tmp_path)
    file = logs(folder)[-1]
    name = SegmentName.parse(file.name)
    assert name is not None
    last = recovered(folder).version
    whole = file.read_bytes()
    *_, template = (
        read_record(frame) for frame in frames(whole, name.mark) if frame.body and frame.body[0][:1] == b"["
    )
    lost, arrived = (b"".join(encode(name.mark, template._replace(version=last + n), safe=last)) for n in (1, 2))
    file.write_bytes(whole + bytes(len(lost)) + arrived)
    found = recovered(folder)
    assert found.version == last
    assert state_of(found) == states[last]
    # The same bytes, but the group before them had been called safe by then.
    arrived = b"".join(encode(name.mark, template._replace(version=last + 2), safe=last + 1))
    file.write_bytes(whole + bytes(len(lost)) + arrived)
    with pytest.raises(StateError, match=f"up to version {last + 1} of θ were acknowledged.*only up to version {last}"):
        recovered(folder)


def test_a_broken_snapshot_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, states, safe = kept(tmp_path)
    newest = max(folder.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    found = recovered(folder)
    assert "is broken" in caplog.text
    assert found.version >= safe
    assert state_of(found) == states[found.version]


def test_a_missing_segment_is_noticed(tmp_path: Path) -> None:
    folder, _, _ = kept(tmp_path, snapshot_at=5)
    newest = max(folder.glob("*.safetensors"))
    newest.unlink()
    first, *_ = logs(folder)
    first.unlink()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(StateError, match="acknowledged"):
        recovered(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_log_of_a_newer_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("paramserver.server.logformat.FORMAT", 2)
        folder, _, _ = kept(tmp_path)
    with pytest.raises(StateError, match=r"format 2.*use a newer one"):
        recovered(folder)


def test_segments_behind_the_oldest_snapshot_are_removed(tmp_path: Path) -> None:
    class Often(Logged):
        def look(self) -> None:
            super().look()
            if self.run.engine.version % 5 == 4:
                self.saver._take()

    training = Often(tmp_path / "state", job()).finish(at_once)
    assert len(logs(training.folder)) <= 3
    assert recovered(training.folder).version == SHARDS * STEPS


def test_a_long_log_calls_for_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 100)
    training = Logged(tmp_path / "state", job())

    async def after_the_disk(*arguments: Any) -> Gradient:
        await training.saver.settled()
        return await at_once(*arguments)

    training.finish(after_the_disk)
    # Nine contributions of 12 bytes are too long: the job, the first θ, two on the way, and the end.
    assert [int(file.name[:10]) for file in sorted(training.folder.glob("*.safetensors"))] == [4, 5]


def test_a_log_that_grows_too_long_during_a_snapshot_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 100)
    monkeypatch.setattr(log_module, "AHEAD_VERSIONS", 1024)
    training = Logged(tmp_path / "state", job())
    is_long = threading.Event()

    def save(directory: StateDirectory, snapshot: Snapshot, *common: Any) -> Any:
        if snapshot.engine is not None:
            assert is_long.wait(DEADLINE_S)
        return write(directory, snapshot, *common)

    async def compute(*arguments: Any) -> Gradient:
        if training.run.engine.version == 12:
            is_long.set()
            await training.saver.settled()
            # What was asked for meanwhile is begun.
            await asyncio.sleep(0)
            await training.saver.settled()
        return await at_once(*arguments)

    write = StateDirectory.save
    monkeypatch.setattr(StateDirectory, "save", save)
    training.finish(compute)
    # The job, the first θ, one as soon as that was written, one nine contributions later, and the end.
    assert [int(file.name[:10]) for file in sorted(training.folder.glob("*.safetensors"))] == [4, 5]


def test_sync_is_not_logged_since_it_is_computed_again(tmp_path: Path) -> None:
    training = Logged(tmp_path / "state", job(train__mode="sync", optimizer__name="sgd")).finish(at_once)
    assert logs(training.folder) == []
    assert recovered(training.folder).version == STEPS


class Switching(Crashing):
    """Goes from async to sync and back."""

    def look(self) -> None:
        version = self.run.engine.version
        if self.run.engine.phase == "train" and version == 5 and self.run.job.train.mode == "async":
            self.run.set_policy({"mode": "sync"})
        elif version == 8 and self.run.job.train.mode == "sync":
            self.run.set_policy({"mode": "ssp", "staleness": 2})
        super().look()


def test_a_switched_policy_is_replayed_where_it_was_switched(tmp_path: Path) -> None:
    training = Switching(tmp_path / "state", job()).finish(at_once, slower(2))
    modes = set()
    for folder, safe in training.crashes:
        found = recovered(folder)
        assert found.version >= safe
        if found.parameters is not None:
            before = training.states[found.version]
            assert state_of(found)["theta"] == before["theta"]
            assert state_of(found)["optimizer"] == before["optimizer"]
            modes.add("async" if found.train is None else found.train.mode)
    assert modes == {"async", "sync", "ssp"}


class Held(Logged):
    """Its disk does not answer from version 4 on until somebody lets it."""

    def __init__(self, folder: Path, job: Job) -> None:
        super().__init__(folder, job)
        self.let = threading.Event()

    def sync(self, file: int) -> None:
        if self.run.engine.version >= 4:
            self.let.wait(DEADLINE_S)
        os.fsync(file)


class Told:
    """What workers are told for good: versions that are acknowledged, and what was safe when the job was over."""

    def __init__(self, training: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
        self.versions: list[int] = []
        self.ends: list[int] = []
        made: dict[tuple[int, int], int] = {}
        append, deliver = Log.append, Session.deliver

        def watched(log: Log, applied: Apply, elapsed_s: float, store: Store) -> None:
            (contribution,) = applied.contributions
            made[contribution.shard, contribution.step] = applied.version
            append(log, applied, elapsed_s, store)

        def heard(session: Session, messages: Sequence[bytes]) -> None:
            for data in messages:
                message, _ = decode_server_message(data)
                if message.HasField("acknowledged"):
                    version = made[message.acknowledged.shard, message.acknowledged.step]
                    assert version <= training.log.safe
                    self.versions.append(version)
                elif message.HasField("ended"):
                    self.ends.append(training.log.safe)
            deliver(session, messages)

        monkeypatch.setattr(Log, "append", watched)
        monkeypatch.setattr(Session, "deliver", heard)
        monkeypatch.setattr("server.inprocess.Identity", partial(Identity, acknowledge=True))


@pytest.mark.parametrize("ahead", [0, 3])
def test_work_is_handed_out_ahead_of_the_disk_up_to_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    training = Held(tmp_path / "state", job())
    monkeypatch.setattr("os.fdatasync", training.sync)
    monkeypatch.setattr(log_module, "AHEAD_VERSIONS", ahead)
    told = Told(training, monkeypatch)

    async def scenario() -> None:
        running = asyncio.create_task(training._finish((at_once, at_once)))
        while not (training.run.engine.version >= 4 and training.log._writing):
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        stopped_at, safe = training.run.engine.version, training.log.safe
        # Each worker had one more contribution in hand when nothing was handed out any more.
        assert safe + ahead < stopped_at <= safe + ahead + 2
        assert told.versions == list(range(1, safe + 1))
        client = asyncio.create_task(training.log.caught_up())
        for _ in range(200):
            await asyncio.sleep(0)
        assert (training.run.engine.version, training.log.safe) == (stopped_at, safe)
        assert told.versions == list(range(1, safe + 1))
        assert not client.done()
        training.let.set()
        await client
        assert training.log.safe >= stopped_at
        await running

    asyncio.run(scenario())
    assert told.versions == list(range(1, SHARDS * STEPS + 1))
    assert told.ends == [SHARDS * STEPS] * 2


def test_bytes_bound_how_far_training_is_ahead_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Held(tmp_path / "state", job())
    monkeypatch.setattr("os.fdatasync", training.sync)
    monkeypatch.setattr(log_module, "AHEAD_VERSIONS", 1000)
    # A contribution has three float32, and two of them may be ahead.
    monkeypatch.setattr(log_module, "AHEAD_BYTES", 35)

    async def scenario() -> None:
        running = asyncio.create_task(training._finish((at_once,)))
        while not (training.run.engine.version >= 4 and training.log._writing):
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert training.run.engine.version == training.log.safe + 2 + 1
        training.let.set()
        await running

    asyncio.run(scenario())


def test_the_end_of_the_job_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Held(tmp_path / "state", job())
    monkeypatch.setattr("os.fdatasync", training.sync)
    monkeypatch.setattr(log_module, "AHEAD_VERSIONS", 1000)
    told = Told(training, monkeypatch)

    async def scenario() -> None:
        running = asyncio.create_task(training._finish((at_once,)))
        while not training.run.engine.ended:
            await asyncio.sleep(0)
        assert training.log.safe < training.run.engine.version
        assert told.ends == []
        training.let.set()
        await running

    asyncio.run(scenario())
    assert told.ends == [SHARDS * STEPS]


def test_nobody_is_told_of_what_the_first_snapshot_does_not_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Held(tmp_path / "state", job())
    told = Told(training, monkeypatch)
    save = StateDirectory.save

    def late(directory: StateDirectory, snapshot: Snapshot) -> Any:
        if snapshot.engine is not None:
            training.let.wait(DEADLINE_S)
        return save(directory, snapshot)

    monkeypatch.setattr(StateDirectory, "save", late)

    async def scenario() -> None:
        running = asyncio.create_task(training._finish((at_once,)))
        while training.run.engine.version < 1:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert (training.run.engine.version, training.log.safe) == (2, 0)
        assert told.versions == []
        training.let.set()
        await running

    asyncio.run(scenario())
    assert told.versions == list(range(1, SHARDS * STEPS + 1))


@pytest.mark.parametrize("function", ["fdatasync", "writev"])
def test_a_full_disk_stops_training_until_a_snapshot_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr("paramserver.server.saver.RETRY_S", 0.01)
    training = Crashing(tmp_path / "state", job())
    real, failures = getattr(os, function), []

    def full(file: int, *arguments: Any) -> Any:
        if training.run.engine.version >= 6 and len(failures) < 3:
            failures.append(training.run.engine.version)
            if function == "writev":
                # Half of it went out before the disk was full.
                real(file, [b"half a frame"])
            raise OSError(28, "No space left on device")
        return real(file, *arguments)

    monkeypatch.setattr(f"os.{function}", full)
    training.finish(at_once, at_once)
    assert training.run.engine.version == SHARDS * STEPS
    assert len(failures) == 3
    # Only what a snapshot made safe was answered, so that training was ahead by no more than the bound and what each of
    # the two workers had in hand.
    assert failures[-1] <= failures[0] + 4 * len(failures)
    for folder, safe in training.crashes:
        found = recovered(folder)
        assert found.version >= safe
        if found.parameters is not None:
            assert state_of(found) == training.states[found.version]


def test_while_the_disk_is_full_a_client_is_told_instead_of_being_kept_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Logged(tmp_path / "state", job())
    said: list[str] = []
    full = True

    def sync(file: int) -> None:
        if full and training.run.engine.version >= 6:
            raise OSError(28, "No space left on device")
        os.fsync(file)

    monkeypatch.setattr("os.fdatasync", sync)
    monkeypatch.setattr("paramserver.server.saver.RETRY_S", 0.01)

    async def scenario() -> None:
        nonlocal full
        running = asyncio.create_task(training._finish((at_once,)))
        while not said:
            await asyncio.sleep(0)
            if training.run.log is not None and training.log.error:
                said.append(training.saver.describe())
                with pytest.raises(StateError, match=r"not safe.*No space left"):
                    await training.log.caught_up()
        full = False
        await running

    asyncio.run(scenario())
    assert said == ["the log cannot be written: No space left on device; training waits"]
    assert training.run.engine.version == SHARDS * STEPS
    with suppress(StateError):
        assert recovered(training.folder).version == SHARDS * STEPS
