import sys

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from paramserver.wire.errors import DataError
from paramserver.worker.data import open_source
from paramserver.worker.data.sparse import with_features


@pytest.mark.parametrize("zero_based", [False, True])
def test_a_file_is_read_as_scikit_learn_reads_it(tmp_path, zero_based):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 12)) * (rng.random((30, 12)) < 0.4)
    x[0, 0] = x[3, 11] = 1
    path = tmp_path / "data.svm"
    dump_svmlight_file(x, rng.integers(0, 3, 30), str(path), zero_based=zero_based, comment="made: 0:1 here")
    expected, labels = load_svmlight_file(str(path), zero_based=zero_based)
    source = open_source(str(path))
    assert (source.rows, source.features) == (30, 12)
    found, y = source.read(0, 30)
    assert isinstance(found, csr_array)
    np.testing.assert_array_equal(found.toarray(), expected.toarray())
    np.testing.assert_array_equal(y, labels)
    part, y = source.read(7, 20)
    np.testing.assert_array_equal(part.toarray(), expected.toarray()[7:20])
    np.testing.assert_array_equal(y, labels[7:20])


def test_signs_tabs_comments_and_rows_without_features_are_understood(tmp_path):
    path = tmp_path / "data.txt.train"
    path.write_bytes(b"# head\n+1 1:.5\t3:-2e1 # tail 9:9\r\n\n-1\n0 2:1. \n")
    x, y = open_source(str(path)).read(0, 3)
    assert x.toarray().tolist() == [[0.5, 0, -20], [0, 0, 0], [0, 1, 0]]
    assert y.tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 3:x", r":2: '3:x' found; INDEX:VALUE is expected"),
        ("1 2:1 3", r":2: '3' found; INDEX:VALUE"),
        ("1 2:1 3:4:5", r":2: '3:4:5' found; INDEX:VALUE"),
        ("1 -2:1", r":2: '-2:1' found; INDEX:VALUE"),
        ("one 2:1", r":2: 'one' found; a label and then INDEX:VALUE"),
        ("1:2 3:4", r":2: .* found; "),
        ("1 qid:3 2:1", r":2: 'qid:3' found; INDEX:VALUE"),
        ("1 3:1 2:1", r":2: index 2 follows 3; they must ascend"),
        ("1 3:1 3:1", r":2: index 3 follows 3; they must ascend"),
        ("1 3:1e999", r":2: a number is too large for float64"),
        ("1e999 3:1", r":2: a number is too large for float64"),
        ("1 3:nan", r":2: '3:nan' found"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "data.svm"
    path.write_text(f"1 1:1 4:2\n{line}\n0 2:1\n")
    source = open_source(str(path))
    source.read(0, 1)
    with pytest.raises(DataError, match=r"data\.svm" + message):
        source.read(0, 3)


def test_a_file_without_any_feature_is_refused(tmp_path):
    (tmp_path / "data.svm").write_text("1\n0\n")
    with pytest.raises(DataError, match="no row has a feature"):
        open_source("data.svm", base=tmp_path)


def test_features_are_widened_with_zeros_and_narrowed_by_dropping(tmp_path):
    (tmp_path / "data.svm").write_text("1 1:1 3:3\n")
    x, _ = open_source("data.svm", base=tmp_path).read(0, 1)
    assert with_features(x, 5).toarray().tolist() == [[1, 0, 3, 0, 0]]
    assert with_features(x, 2).toarray().tolist() == [[1, 0]]


def test_missing_scipy_is_explained(tmp_path, monkeypatch):
    (tmp_path / "data.svm").write_text("1 1:1\n")
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(DataError, match=r"pip install 'paramserver\[sparse\]'"):
        open_source("data.svm", base=tmp_path).read(0, 1)
