import pytest
from scipy.sparse import csr_array

from paramserver.wire.errors import DataError
from paramserver.worker.data import open_source

OWN = """
import numpy as np
from scipy.sparse import coo_matrix
X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)
def whole(): return X, Y
def lists(): return X.tolist(), Y.tolist()
def sparse(): return coo_matrix(X), Y
def ranges(*, start, stop):
    CALLS.append((start, stop))
    return X[start:stop], Y[start:stop]
ranges.rows = 10
CALLS = []
def without_rows(start, stop): return X[start:stop], Y[start:stop]
def too_many(start, stop): return X, Y
too_many.rows = 10
def single(): return X
def fails(): raise KeyError("no such bucket")
def ragged(): return [[1, 2], [3]], [1, 2]
def text(): return [["a"], ["b"]], [1, 2]
number = 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("name", ["whole", "lists", "ranges", "sparse"])
def test_whatever_a_function_returns_is_read_by_rows(own, name):
    source = open_source(f"own.py:{name}", base=own)
    assert (source.rows, source.features) == (10, 2)
    x, y = source.read(3, 5)
    assert isinstance(x, csr_array) == (name == "sparse")
    assert (x.toarray() if name == "sparse" else x).tolist() == [[6, 7], [8, 9]]
    assert y.tolist() == [3, 4]


def test_a_function_of_ranges_is_asked_for_these_rows_only(own):
    source = open_source("own.py:ranges", base=own)
    calls = source._function.__globals__["CALLS"]
    calls.clear()
    source.read(4, 6)
    assert calls == [(4, 6)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.py:without_rows", "needs an attribute 'rows' of 1 or more; found None"),
        ("own.py:too_many", "returned 10 rows for start=0, stop=1"),
        ("own.py:single", "returned ndarray; a pair"),
        ("own.py:fails", "raised KeyError: 'no such bucket'"),
        ("own.py:ragged", "returned no arrays"),
        ("own.py:text", "real numbers are expected"),
        ("own.py:number", "is of type int"),
        ("own.py:hwole", r"did you mean 'whole'\?"),
        ("nothing.py:load", "no such file"),
        ("nothing:load", "there is no module 'nothing'"),
    ],
)
def test_what_is_wrong_is_explained(own, name, message):
    with pytest.raises(DataError, match=message):
        open_source(name, base=own)
