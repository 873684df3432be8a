import sys

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from paramserver.wire.errors import DataError
from paramserver.worker.data import builtin, open_source


def test_linear_is_the_line_that_it_claims_to_be():
    x, y = open_source("builtin:linear").read(0, 1000)
    assert x.shape == (1000, 1)
    assert x.dtype == y.dtype == np.float64
    assert x.min() >= 0
    assert x.max() < 1
    slope, intercept = np.polyfit(x[:, 0], y, 1)
    # Four standard errors of the least-squares estimates.
    assert abs(slope - 2) < 4 * 0.1 / (x.std() * 1000**0.5)
    assert abs(intercept - 1) < 4 * 0.2 / 1000**0.5
    assert np.std(y - 2 * x[:, 0] - 1) == pytest.approx(0.1, rel=0.1)
    # The same bits for every numpy: the golden first point.
    assert (x[0, 0], y[0]) == (0.5881308010772742, 2.2292421032873797)


@pytest.mark.parametrize(
    ("name", "load", "scale"),
    [("digits", load_digits, 16), ("breast_cancer", load_breast_cancer, 1), ("diabetes", load_diabetes, 1)],
)
def test_sets_of_scikit_learn_are_theirs(name, load, scale):
    expected, labels = load(return_X_y=True)
    source = open_source(f"builtin:{name}")
    x, y = source.read(0, source.rows)
    np.testing.assert_array_equal(x * scale, expected)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("name", ["linear", "digits", "breast_cancer", "diabetes"])
def test_train_and_test_are_disjoint_and_make_up_the_whole(name):
    def rows(part):
        source = open_source(f"builtin:{name}{part}")
        x, y = source.read(0, source.rows)
        return sorted(map(tuple, np.column_stack([x, y]).tolist()))

    whole, train, test = rows(""), rows("/train"), rows("/test")
    assert sorted(train + test) == whole
    assert len(test) == len(whole) // 5
    assert rows("/test") == test


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("builtin:digit", r"no such set, did you mean 'digits'\? Allowed: linear, digits"),
        ("builtin:digits/tran", r"no such part, did you mean 'train'\? Allowed: train, test"),
        ("builtin:", "no such set. Allowed"),
    ],
)
def test_unknown_names_are_explained(source, message):
    with pytest.raises(DataError, match=message):
        open_source(source)


def test_missing_scikit_learn_is_explained(monkeypatch):
    builtin._sklearn.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"pip install 'paramserver\[datasets\]'"):
        open_source("builtin:digits")
    assert open_source("builtin:linear").rows == 1000
