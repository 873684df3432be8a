"""What is written down of the versions of θ: it goes back with θ, and never stands in the way of training."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from paramserver.server.events import Apply, Contribution
from paramserver.server.provenance import FILE, Notes, Origins, Provenance, origin_of
from paramserver.wire.errors import RequestError
from server.test_log import job


def update(version: int, worker: str = "w") -> Apply:
    contributions = (Contribution(worker, shard, 9, version - 1, version - 1, 2, 0.5) for shard in (0, 1))
    return Apply(version, version, tuple(contributions))


def written(folder: Path, *versions: int, at: int = 0, job_id: str = "j", worker: str = "w") -> None:
    """Write down updates as a server would that goes on from version `at`."""
    provenance = Provenance(folder, job_id, job(), at, job().train)
    for version in versions:
        provenance.applied(update(version, worker))
    provenance.write(provenance.take())
    provenance.close()


def test_what_a_crash_took_back_is_forgotten_and_made_again(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3, 4)
    written(tmp_path, 3, at=2, worker="other")
    with closing(Origins(tmp_path)) as origins:
        assert origins.newest == 3
        workers = [[c.worker for c in u.contributions] for u in origins.updates(0, 9)]
    assert workers == [["w", "w"], ["w", "w"], ["other", "other"]]
    with pytest.raises(RequestError, match="known are versions 1 to 3"):
        origin_of(tmp_path, 4)


def test_another_job_begins_with_nothing(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    written(tmp_path, 1, job_id="k")
    with closing(Origins(tmp_path)) as origins:
        assert (origins.job_id, origins.newest) == ("k", 1)


def test_a_broken_file_is_put_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be taken for one" * 40)
    with pytest.raises(RequestError, match="cannot be read"):
        Origins(tmp_path)
    written(tmp_path, 1)
    assert "is broken" in caplog.text
    assert (tmp_path / f"{FILE}.broken").exists()
    assert origin_of(tmp_path, 1)[0].version == 1


def test_what_cannot_be_written_now_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "not there yet"
    provenance = Provenance(folder, "j", job(), 0, job().train)
    provenance.applied(update(1))
    provenance.write(provenance.take())
    assert "training goes on" in caplog.text
    folder.mkdir()
    provenance.write(Notes([update(2)], [(2, "hash")], []))
    provenance.close()
    with closing(Origins(folder)) as origins:
        assert origins.newest == 2
        assert origins.update(1) is not None
        assert origins.hashes() == {2: "hash"}


def test_a_directory_without_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"holds no {FILE}"):
        Origins(tmp_path)
