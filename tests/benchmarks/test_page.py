"""The page holds what a run found, and can be written again without measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, measuring, page, results
from benchmarks.measuring import measure
from benchmarks.plan import QUICK, Cell, cells
from benchmarks.results import Record, Results

MACHINE = {
    "cores": 2,
    "processor": "a processor",
    "memory_gib": 24,
    "system": "Linux",
    "python": "3.11",
    "packages": {"numpy": "2"},
    "commit": "abc",
    "started": "today",
    "load": 0.1,
}
TIMES = {
    "median_ms": 1.2345,
    "p10_ms": 1.0,
    "p90_ms": 2.0,
    "floor_ms": 0.5,
    "ratio": 2.469,
    "cpu_s_per_gb": 1.0,
    "floor_cpu_s_per_gb": 0.5,
    "peak_rss_mb": {"server": 321.0, "worker-0": 1.0},
}


def found(cell: Cell) -> dict[str, Any]:
    run = {"samples_per_s": 1.0, "seconds": 1.0, "accuracy": 0.8}
    particular: dict[str, dict[str, Any]] = {
        "rounds": {"bytes_pushed": 1e6, "bytes_pulled": 2e6, "unpaced_floor_ms": 0.4, "unpaced_ratio": 3.09},
        "partitions": {"one_ms": [1.0], "several_ms": [1.1]},
        "message_size": {"gb_per_s": [1.0, 1.1], "median_ms": [1.0, 10.0]},
        "flat": {"samples": [[float(n), 100.0] for n in range(20)]},
        "fits": {"together_mb": 2048.0, "less_available_mb": 2048.0},
        "updates": {"code": "numpy", "threads": 2},
        "table": {"pull_ms": 1.0, "push_ms": 2.0, "dim": 16, "batch": 10, "memory_ratio": 1.5},
        "peer": {"version": "1.0"},
    }
    if cell.kind == "accuracy":
        return {name: [run] for name in accuracy.WAYS}
    return {**TIMES, **cell.options, **particular.get(cell.kind, {})}


@pytest.fixture
def run() -> Results:
    return Results(MACHINE, [Record(cell.kind, cell.options, found(cell)) for cell in cells(QUICK)])


def test_the_page_has_a_place_for_every_section(run: Results, tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    page.write(run, copy)
    text = copy.read_text(encoding="utf-8")
    assert (
        "| shared memory | 1,000 | 2 | 1.23 | 1.00 to 2.00 | 0.500 | 2.47 | 1.00 | 0.500 | 0.400 | 3.09 | 321 |" in text
    )
    assert "2 cores of a processor, 24 GiB" in text
    page.write(run, copy)
    assert copy.read_text(encoding="utf-8") == text


def test_what_stands_outside_of_the_marks_stays() -> None:
    text = "before\n<!-- x -->\nold\n<!-- /x -->\nafter <!-- y --><!-- /y -->\n"
    new = page.replaced(text, "x", ["new \\1", "lines"])
    assert new == "before\n<!-- x -->\nnew \\1\nlines\n<!-- /x -->\nafter <!-- y --><!-- /y -->\n"
    with pytest.raises(ValueError, match="0 places marked <!-- z -->"):
        page.replaced(text, "z", [])


def test_every_section_can_be_written_of_a_run_in_which_everything_failed() -> None:
    failed = Results(MACHINE, [Record(cell.kind, cell.options, None, "no luck") for cell in cells(QUICK)])
    for section in page.SECTIONS.values():
        assert section(failed) is not None
    lines = page.promises(failed)
    assert "- `table rows=1,000,000`: no luck" in lines
    assert lines[0].startswith("0 of ")
    assert all("| not measured |" in line for line in lines[4 : lines.index("", 4)])


def test_results_come_back_as_they_were_written(run: Results, tmp_path: Path) -> None:
    file = tmp_path / "folder/results.jsonl"
    results.begin(file, run.machine)
    for record in run.records:
        results.add(file, record)
    back = results.read(file)
    assert (back.machine, back.records) == (run.machine, run.records)


def test_the_pictures_are_drawn(run: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    files = plots.draw(run, tmp_path)
    assert [file.name for file in files] == ["rounds.png", "scaling.png", "memory.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert plots.draw(Results(MACHINE, []), tmp_path) == []


def test_a_cell_that_fails_or_hangs_is_a_record() -> None:
    failed = measure(Cell("pulls", {"size": 0, "transport": "stream", "pulls": 5}))
    assert (failed.found, failed.missing) == (None, False)
    assert "size is 0, allowed are 1 and more" in failed.error
    hung = measure(Cell("table", {"rows": 10**7}), limit_s=0.01)
    assert hung.error == "given up after 0.01 s"


def test_an_error_is_told_by_its_own_line() -> None:
    said = (
        "Traceback (most recent call last):\n  File x\nJobFailed: server was killed; the end of its log:\n  INFO fine\n"
    )
    assert measuring._error(said) == "JobFailed: server was killed; the end of its log:"
    assert measuring._error("") == ""


def test_a_peer_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEERS_PYTHON", str(tmp_path / "python"))
    record = measure(Cell("peer", {"peer": "gloo", "size": 10, "workers": 2, "rounds": 10}))
    assert (record.missing, record.error) == (True, "not installed: `make peers`")
