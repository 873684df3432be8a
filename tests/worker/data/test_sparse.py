import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from paramserver.worker.data.sparse import as_csr


def test_duplicate_entries_are_summed_without_changing_the_original():
    twice = coo_matrix(([1.0, 2.0, 5.0], ([0, 0, 1], [3, 3, 0])), shape=(2, 4))
    assert as_csr(twice).data.tolist() == [3, 5]
    unsorted = csr_matrix((np.array([1.0, 2.0]), np.array([2, 0]), np.array([0, 2])), shape=(1, 3))
    assert as_csr(unsorted).indices.tolist() == [0, 2]
    assert unsorted.indices.tolist() == [2, 0]
