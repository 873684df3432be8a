import sys

import numpy as np
import pytest

from paramserver.wire.errors import DataError
from paramserver.worker.data import open_source


@pytest.fixture
def write(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra 'parquet'")
    from pyarrow import table

    def write(columns, **options):
        parquet.write_table(table(columns), tmp_path / "data.parquet", **options)
        return str(tmp_path / "data.parquet")

    return write


def read_all(path, label):
    source = open_source(path, label)
    return source.read(0, source.rows)


COLUMNS = {"a": np.arange(23.0), "y": np.arange(23) % 3, "b": np.arange(23) > 10}


def test_any_range_is_read_across_row_groups(write):
    source = open_source(write(COLUMNS, row_group_size=5), "y")
    assert (source.rows, source.features) == (23, 2)
    for start, stop in [(0, 23), (4, 6), (5, 10), (22, 23), (3, 17)]:
        x, y = source.read(start, stop)
        np.testing.assert_array_equal(x, np.column_stack([COLUMNS["a"], COLUMNS["b"]])[start:stop])
        np.testing.assert_array_equal(y, COLUMNS["y"][start:stop])


def test_the_last_column_is_the_label_by_default(write):
    np.testing.assert_array_equal(open_source(write(COLUMNS)).read(0, 23)[1], COLUMNS["b"])


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        ({"a": [1.0], "name": ["x"]}, "", "column 'name' is string; numbers are expected"),
        ({"a": [1.0, None], "y": [1, 2]}, "", "1 empty cells in 'a', rows 0 to 1"),
        ({"a": [1.0], "target": [1]}, "tagret", r"did you mean 'target'\?"),
        ({"a": np.zeros(0), "y": np.zeros(0)}, "", "no rows"),
    ],
)
def test_what_is_wrong_is_named(write, columns, label, message):
    path = write(columns)
    with pytest.raises(DataError, match=message):
        read_all(path, label)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra 'parquet'")
    (tmp_path / "data.parquet").write_text("junk")
    with pytest.raises(DataError, match="not a Parquet file"):
        open_source("data.parquet", base=tmp_path)


def test_missing_pyarrow_is_explained(tmp_path, monkeypatch):
    (tmp_path / "data.parquet").write_text("junk")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'paramserver\[parquet\]'"):
        open_source("data.parquet", base=tmp_path)
