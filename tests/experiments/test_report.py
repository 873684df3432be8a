from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

report = importlib.import_module("experiments.report")


def test_a_spread_tells_median_and_extremes_and_who_did_not_arrive() -> None:
    assert report.Spread.of([3.0, 1.0, 2.0]).text(1) == "2.0 (1.0 to 3.0)"
    assert report.Spread.of([1300.0]).text(0) == "1,300 (1,300 to 1,300)"
    assert report.Spread.of([3.0, math.inf, 2.0]).text(0) == "2 at best, 2 of 3 runs"
    assert report.Spread.of([math.inf, math.inf]).text() == "never"


def test_only_the_rows_in_question_count() -> None:
    rows = [{"way": way, "loss": loss} for way, loss in (("a", 1.0), ("a", 2.0), ("b", 10.0), ("b", 11.0))]
    assert report.spread(rows, "loss", way="b").high == 11
    assert report.spread(rows, "loss", way="c") is None
    assert report.distinct(rows, "way") == ["a", "b"]


def test_a_page_keeps_what_stands_outside_of_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter <!-- y --><!-- /y -->\n")
    report.write_between(page, "x", ["new \\1", "lines"])
    assert page.read_text() == "before\n<!-- x -->\nnew \\1\nlines\n<!-- /x -->\nafter <!-- y --><!-- /y -->\n"
    with pytest.raises(ValueError, match="0 places marked <!-- z -->"):
        report.write_between(page, "z", [])
