import numpy as np
import pytest
from scipy.sparse import csr_array

from paramserver.wire.errors import DataError
from paramserver.wire.job import Job
from paramserver.wire.moments import combine
from paramserver.worker.data import open_source
from paramserver.worker.data import pick as picking
from paramserver.worker.learner import Learner
from paramserver.worker.moments import Standardizer
from paramserver.worker.shard import Shard, count_classes, open_test

RNG = np.random.default_rng(0)
X = RNG.normal(5, 3, (31, 4))
Y = RNG.integers(0, 3, 31)


def job(source, dtype="float32", **data):
    return Job.from_dict(
        {
            "task": {"use": "softmax_regression"},
            "data": {"source": source, "shards": 4, "batch_size": 3, **data},
            "train": {"dtype": dtype, "seed": 11},
        }
    )


@pytest.fixture(params=["mapped.npz", "packed.npz", "data.csv", "data.svm"])
def source(tmp_path, request):
    np.savez(tmp_path / "mapped.npz", x=X, y=Y)
    np.savez_compressed(tmp_path / "packed.npz", x=X, y=Y)
    np.savetxt(tmp_path / "data.csv", np.column_stack([X, Y]), delimiter=",", fmt="%.17g")
    lines = [f"{y} " + " ".join(f"{i}:{v:.17g}" for i, v in enumerate(x, 1)) for x, y in zip(X, Y, strict=True)]
    (tmp_path / "data.svm").write_text("\n".join(lines))
    return str(tmp_path / request.param)


def dense(x):
    return x.toarray() if isinstance(x, csr_array) else x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("standardize", [False, True])
def test_the_batches_of_all_shards_show_every_row_once_an_epoch_prepared(source, dtype, standardize):
    work = job(source, dtype, standardize=standardize)
    shards = [Shard.open(work, i) for i in range(4)]
    surveys = [shard.survey() for shard in shards]
    assert [survey.rows for survey in surveys] == [7, 8, 8, 8]
    assert {survey.features for survey in surveys} == {4}
    assert max(survey.classes for survey in surveys) == 3
    expected = X
    standardizer = None
    if standardize:
        standardizer = Standardizer.from_moments(combine([survey.moments for survey in surveys]))
        expected = (X - X.mean(axis=0) * (not source.endswith("svm"))) / X.std(axis=0)
    batches = []
    for shard in shards:
        shard.prepare(3, standardizer)
        batches += [shard.batch(step) for step in range(3, 6)]
    assert {(batch.x.dtype, batch.y.dtype) for batch in batches} == {(np.dtype(dtype), np.dtype(dtype))}
    assert {batch.classes for batch in batches} == {3}
    shown = np.vstack([np.column_stack([dense(batch.x), batch.y]) for batch in batches])
    wanted = np.column_stack([expected, Y]).astype(dtype)
    np.testing.assert_allclose(
        shown[np.argsort(shown[:, 0])],
        wanted[np.argsort(wanted[:, 0])],
        rtol=1e-6 if dtype == "float32" else 1e-12,
    )


def test_a_batch_is_the_same_bits_in_every_process_and_order(source):
    first, second = Shard.open(job(source), 2), Shard.open(job(source), 2)
    for shard in (first, second):
        shard.prepare(3)
    later = [second.batch(step) for step in (8, 1, 4)]
    for step, batch in zip((8, 1, 4), later, strict=True):
        again = first.batch(step)
        assert dense(again.x).tobytes() == dense(batch.x).tobytes()
        assert again.y.tobytes() == batch.y.tobytes()


def test_a_task_cannot_change_the_shard(source):
    shard = Shard.open(job(source, "float64", batch_size=0), 0)
    shard.prepare(3)
    batch = shard.batch(0)
    for array in (batch.x.data if isinstance(batch.x, csr_array) else batch.x, batch.y):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("name", ["data.csv", "data.npy"])
def test_a_worker_reads_nothing_of_other_shards(tmp_path, name):
    if name == "data.csv":
        rows = ["1,2"] * 4 + ["broken"] * 4
        (tmp_path / name).write_text("\n".join(rows))
    else:
        np.save(tmp_path / name, np.ones((8, 2)))
    work = job(name, shards=2, standardize=True)
    shard = Shard.open(work, 0, tmp_path)
    if name == "data.npy":
        # Overwritten after opening: a mapped file shows that, and only in the rows that belong to the shard.
        table = np.load(tmp_path / name, mmap_mode="r+")
        table[4:] = np.nan
        table.flush()
    assert shard.survey().moments.mean.tolist() == [1]
    with pytest.raises(DataError):
        Shard.open(work, 1, tmp_path).survey()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, 2], 3),
        ([0.0, 2.0], 3),
        ([0], 1),
        ([-1, 1], 2),
        ([-1], 2),
        ([1], 2),
        ([True, False], 2),
        ([0, 0.5], 0),
        ([-1, 0, 1], 0),
        ([-2, 2], 0),
        ([0, 65536], 0),
        ([0, np.nan], 0),
        (np.array([0, 255], np.uint8), 256),
    ],
)
def test_labels_count_as_classes_when_they_are_class_numbers(labels, classes):
    assert count_classes(np.asarray(labels)) == classes


def rows_of(shard):
    """Return which rows of X a shard holds."""
    shard.prepare(3)
    batch = shard.batch(0)
    found = [int(np.argmin(np.abs(X - row).sum(axis=1))) for row in dense(batch.x)]
    assert (batch.y == Y[found]).all()
    return found


def test_label_skew_deals_every_kind_of_source_alike(source, tmp_path):
    work = job(source, "float64", label_skew=0.1, batch_size=0, shard_weights=[3, 2, 1, 1])
    dealt = [rows_of(Shard.open(work, shard)) for shard in range(4)]
    assert sorted(row for rows in dealt for row in rows) == list(range(31))
    assert [len(rows) for rows in dealt] == [13, 9, 4, 5]
    assert dealt == [sorted(rows) for rows in dealt]
    reference = job(str(tmp_path / "mapped.npz"), "float64", label_skew=0.1, batch_size=0, shard_weights=[3, 2, 1, 1])
    assert dealt == [rows_of(Shard.open(reference, shard)) for shard in range(4)]


@pytest.mark.parametrize("block", [1, 5, 31])
def test_rows_are_picked_from_blocks_of_any_size(source, monkeypatch, block):
    monkeypatch.setattr(picking, "BLOCK_ROWS", block)
    opened = open_source(source)
    np.testing.assert_array_equal(picking.all_labels(opened), Y)
    rows = np.array([0, 4, 5, 6, 30])
    x, y = picking.pick(opened, rows)
    np.testing.assert_allclose(dense(x), X[rows], rtol=1e-15)
    np.testing.assert_array_equal(y, Y[rows])


def test_labels_that_are_no_classes_cannot_be_dealt(tmp_path):
    np.savez(tmp_path / "values.npz", x=X, y=X[:, 0])
    with pytest.raises(DataError, match=r"label_skew = 0.5 needs labels 0, 1, 2, … or -1/\+1; .*values.npz has others"):
        Shard.open(job("values.npz", label_skew=0.5), 0, tmp_path)


def test_more_shards_than_rows_are_refused(tmp_path):
    (tmp_path / "data.csv").write_text("1,2\n3,4\n")
    with pytest.raises(DataError, match="4 shards are more than the 2 rows"):
        Shard.open(job("data.csv"), 0, tmp_path)


def test_the_test_set_is_prepared_as_training_was(tmp_path):
    np.savez(tmp_path / "test.npz", x=X[:5], y=Y[:5])
    standardizer = Standardizer(np.full(4, 2.0), np.full(4, 4.0))
    batch = open_test(job("train.npz", test="test.npz"), 4, 3, standardizer, tmp_path)
    np.testing.assert_allclose(batch.x, (X[:5] - 2) / 4, rtol=1e-6)
    assert batch.x.dtype == batch.y.dtype == np.float32
    assert batch.classes == 3


def test_a_sparse_test_set_takes_the_features_of_training(tmp_path):
    (tmp_path / "test.svm").write_text("1 1:1 3:3\n0 2:2\n")
    for features in (2, 3, 6):
        batch = open_test(job("train.svm", test="test.svm"), features, 2, None, tmp_path)
        assert batch.x.shape == (2, features)


@pytest.mark.parametrize(
    ("test", "label", "features", "classes", "message"),
    [
        ("", "", 4, 3, "no data.test"),
        ("gone.npz", "", 4, 3, "no such data file"),
        ("test.npz", "", 5, 3, "4 features, but training has 5"),
        ("test.npz", "", 4, 2, "labels from 0 to 2, but training has the classes 0 to 1"),
        ("test.npy", "train_y.npy", 4, 3, "labels the training rows"),
    ],
)
def test_a_test_set_that_does_not_fit_is_refused(tmp_path, test, label, features, classes, message):
    np.savez(tmp_path / "test.npz", x=X, y=Y)
    np.save(tmp_path / "test.npy", X)
    with pytest.raises(DataError, match=message):
        open_test(job("train.npz", test=test, label=label), features, classes, None, tmp_path)


def test_a_label_file_of_training_is_not_taken_for_the_test_set(tmp_path):
    np.savez(tmp_path / "test.npz", x=X, y=Y)
    assert open_test(job("x.npy", test="test.npz", label="y.npy"), 4, 3, None, tmp_path).n == 31


@pytest.mark.parametrize("name", ["mapped.npz", "packed.npz"])
def test_a_shard_that_is_surveyed_again_gives_the_same_batches(tmp_path, name):
    np.savez(tmp_path / "mapped.npz", x=X, y=Y)
    np.savez_compressed(tmp_path / "packed.npz", x=X, y=Y)
    learner = Learner(job(str(tmp_path / name), standardize=True))
    surveys = [learner.survey(shard) for shard in range(4)]
    moments = combine([survey.moments for survey in surveys])
    learner.prepare(3, moments)
    before = learner.batch(1, 2)
    # The job begins anew, as it does where nothing of it was kept, and the server says the same once more.
    assert [learner.survey(shard).classes for shard in range(4)] == [survey.classes for survey in surveys]
    learner.prepare(3, moments)
    after = learner.batch(1, 2)
    assert (after.x.tobytes(), after.y.tobytes()) == (before.x.tobytes(), before.y.tobytes())


def test_batches_made_ahead_are_those_that_come(tmp_path, monkeypatch):
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    plain, ahead = (Learner(job(str(tmp_path / "train.npz"))) for _ in range(2))
    for step in range(7):
        expected = [plain.batch(shard, step) for shard in (2, 0)]
        found = [ahead.batch(shard, step) for shard in (2, 0)]
        assert [batch.x.tobytes() for batch in found] == [batch.x.tobytes() for batch in expected]
        assert [batch.y.tobytes() for batch in found] == [batch.y.tobytes() for batch in expected]
        # What comes may be another step.
        ahead.look_ahead([(2, step + 1), (0, step + 2)])
    expected = plain.batch(1, 5)
    ahead.look_ahead([(1, 5)])
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "batch", None)
        # It is there, once, and what was made before it is not any more.
        assert ahead.batch(1, 5).x.tobytes() == expected.x.tobytes()
        for place in ((1, 5), (2, 7)):
            with pytest.raises(TypeError):
                ahead.batch(*place)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bytes_of_a_batch_are_those_of_its_values_in_the_dtype_of_the_job(source, dtype):
    shard = Shard.open(job(source, dtype), 1)
    shard.prepare(3)
    # Every one of the values is stored, also where a file is sparse.
    assert shard.batch(0).nbytes == 3 * 4 * np.dtype(dtype).itemsize


@pytest.fixture
def made(monkeypatch):
    """The (shard, step) of all batches that are made, in their order."""
    names = []
    original = Shard.batch

    def batch(self, step):
        names.append((self._order._shard, step))
        return original(self, step)

    monkeypatch.setattr(Shard, "batch", batch)
    return names


def test_batches_are_made_ahead_until_it_is_over(tmp_path, made):
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    learner = Learner(job(str(tmp_path / "train.npz")))
    answers = [False, True]
    learner.look_ahead([(0, 1), (2, 1), (0, 2)], lambda: answers.pop(0))
    assert made == [(0, 1)]
    # It is kept, and nobody is asked about what is there.
    answers = [False, False]
    learner.look_ahead([(0, 1), (2, 1), (0, 2)], lambda: answers.pop(0))
    assert made == [(0, 1), (2, 1), (0, 2)]
    for place in [*made]:
        learner.batch(*place)
    assert len(made) == 3


def test_who_makes_a_batch_late_makes_the_next_one_too(tmp_path, made):
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    plain, learner = (Learner(job(str(tmp_path / "train.npz"))) for _ in range(2))
    expected = [plain.batch(1, step).x.tobytes() for step in range(4)]
    made.clear()
    # Nobody looks ahead yet.
    found = [learner.batch(1, 0)]
    assert made == [(1, 0)]
    learner.look_ahead([(1, 1), (1, 2)], lambda: True)
    found += [learner.batch(1, 1), learner.batch(1, 2)]
    assert made == [(1, 0), (1, 2), (1, 1)]
    learner.look_ahead([])
    found.append(learner.batch(1, 3))
    assert made[3:] == [(1, 3)]
    assert [batch.x.tobytes() for batch in found] == expected


def test_what_is_wrong_with_a_batch_made_ahead_is_said_when_it_is_asked_for(tmp_path):
    learner = Learner(job(str(tmp_path / "missing.npz")))
    learner.look_ahead([(0, 1)])
    with pytest.raises(DataError, match="missing"):
        learner.batch(0, 1)
