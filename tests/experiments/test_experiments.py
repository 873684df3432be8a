"""Every experiment passes through all that it does, in its smallest size."""

from __future__ import annotations

import csv
import importlib
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

report = importlib.import_module("experiments.report")

EXPERIMENTS = ("byzantine", "delays", "local_steps", "stragglers", "compression")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_writes_runs_table_and_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    shutil.copy(report.PAGE, page)
    monkeypatch.setattr(report, "PAGE", page)
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    report.command(experiment, ["--tiny", "--seeds", "0", "--out", str(tmp_path), "--write"])
    report.command(experiment, ["--tiny", "--seeds", "1", "--out", str(tmp_path), "--write", "--keep"])
    with (tmp_path / f"{name}.csv").open() as lines:
        seeds = [row["seed"] for row in csv.DictReader(lines)]
    assert seeds.count("0") == seeds.count("1") == len(seeds) / 2 > 1
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.read_text() != report.RESULTS.parents[1].joinpath("docs/experiments.md").read_text()
    assert f"![{name}]" in page.read_text()
    shown = capsys.readouterr().out
    report.command(experiment, ["--draw-only", "--out", str(tmp_path)])
    assert shown.endswith(capsys.readouterr().out), "the same table from the file as from the runs"
