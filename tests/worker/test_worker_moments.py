import numpy as np
import pytest
from scipy.sparse import csr_array, random_array

from paramserver.wire.errors import DataError
from paramserver.wire.moments import combine
from paramserver.worker import moments as module
from paramserver.worker.moments import Standardizer, moments


def dense():
    return np.random.default_rng(0).normal(3, 2, (57, 5))


def sparse():
    return csr_array(random_array((57, 5), density=0.3, rng=np.random.default_rng(0), format="csr"))


@pytest.mark.parametrize("x", [dense(), sparse()], ids=["dense", "csr"])
@pytest.mark.parametrize("block_values", [1, 20, 1 << 20])
def test_moments_of_unequal_shards_combine_to_numpy_on_the_whole(x, block_values, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_VALUES", block_values)
    total = combine([moments(x[0:10]), moments(x[10:11]), moments(x[11:57])])
    whole = x if isinstance(x, np.ndarray) else x.toarray()
    np.testing.assert_allclose(total.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(total.std, whole.std(axis=0), rtol=1e-12)


def test_integers_are_computed_in_float64():
    x = np.full((300, 1), 255, dtype=np.uint8)
    x[0] = 0
    np.testing.assert_allclose(moments(x).mean, x.astype(float).mean(axis=0))


@pytest.mark.parametrize("kind", [np.asarray, csr_array], ids=["dense", "csr"])
def test_a_constant_feature_has_no_deviation_at_all_and_keeps_its_scale(kind):
    x = kind(np.column_stack([np.full(1000, 0.1), np.full(1000, 1e9 + 0.3), np.arange(1000.0)]))
    total = combine([moments(x[0:300]), moments(x[300:1000])])
    assert (total.m2[:2] == 0).all()
    assert (Standardizer.from_moments(total).std[:2] == 1).all()


def test_standardised_dense_data_has_mean_0_and_deviation_1():
    x = dense()
    z = Standardizer.from_moments(moments(x)).apply(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-12)


def test_sparse_data_is_scaled_and_its_zeros_stay():
    x = sparse()
    z = Standardizer.from_moments(moments(x)).apply(x)
    assert z.nnz == x.nnz
    np.testing.assert_allclose(z.toarray(), x.toarray() / x.toarray().std(axis=0), rtol=1e-12)


def test_a_feature_that_is_not_finite_is_named():
    x = dense()
    x[3, 2] = np.inf
    with pytest.raises(DataError, match="feature 2"):
        moments(x)
