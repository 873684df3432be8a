"""The models on tables: their formulas written out, their slopes, and what they learn from real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from paramserver.client.evaluate import evaluate
from paramserver.wire.errors import TaskError
from paramserver.wire.job import Job
from paramserver.wire.tables import initial_rows, tensor_names
from paramserver.worker.batches import Batch
from paramserver.worker.learner import Learner
from paramserver.worker.shard import open_test
from paramserver.worker.tasks import load_task, loss_and_gradient
from paramserver.worker.tasks.sparse import sum_rows
from paramserver.worker.tasks.tables import declared_tables, keys_of
from server.inprocess import Training, at_once

#: Public data that may lie beside the project; own data stand in for them in the other tests.
FOLDERS = [folder / "shared" / "data" for folder in Path(__file__).parents[3].parents[:2]]
MUSHROOMS = next((folder for folder in FOLDERS if (folder / "agaricus.txt.train").exists()), None)

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("sparse_logistic_regression", {}, 2),
    ("factorization_machine", {"rank": 3}, 2),
    ("factorization_machine", {"rank": 3, "l2": 0.1}, 0),
    ("factorization_machine", {"rank": 2, "loss": "squared"}, 2),
    ("matrix_factorization", {"rank": 3, "l2": 0.1}, 0),
]


def make_batch(use: str, classes: int, dtype: Any = np.float64) -> Batch:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 9) if classes else rng.standard_normal(9)
    if use == "matrix_factorization":
        pairs = np.column_stack([rng.integers(0, 4, 9), rng.integers(4, 8, 9)]).ravel()
        x = csr_array((np.ones(18), pairs, np.arange(0, 19, 2)), shape=(9, 8))
    else:
        dense = rng.standard_normal((9, 6)) * (rng.random((9, 6)) < 0.5)
        dense[4] = 0
        x = csr_array(dense)
    return Batch(x.astype(dtype), y.astype(dtype), classes)


def make_params(task: Any, batch: Batch) -> dict[str, Any]:
    rng, tables = np.random.default_rng(1), declared_tables(task)
    params = task.init(rng, batch)
    for name, keys in keys_of(task, tables, batch).items():
        params[name] = rng.standard_normal((*keys.shape, tables[name].dim)).astype(batch.y.dtype)
    return params


@pytest.mark.parametrize(("use", "options", "classes"), CASES)
def test_gradient_is_the_slope_of_the_loss(use: str, options: dict[str, Any], classes: int) -> None:
    task, batch = load_task(use, options), make_batch(use, classes)
    params = make_params(task, batch)
    _, grad = loss_and_gradient(task, params, batch)
    step = 1e-6
    for name, value in params.items():
        slope = np.empty_like(value)
        for place in np.ndindex(value.shape):
            before = value[place]
            value[place] = before + step
            above, _ = task.loss_and_grad(params, batch)
            value[place] = before - step
            below, _ = task.loss_and_grad(params, batch)
            value[place] = before
            slope[place] = (above - below) / (2 * step)
        np.testing.assert_allclose(grad[name], slope, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(("use", "options", "classes"), CASES)
def test_float32_stays_float32_and_nothing_given_is_changed(use: str, options: dict[str, Any], classes: int) -> None:
    task, batch = load_task(use, options), make_batch(use, classes, np.float32)
    params = make_params(task, batch)
    for array in (batch.x.data, batch.y, *params.values()):
        array.flags.writeable = False
    loss_and_gradient(task, params, batch)  # refuses any other dtype
    assert task.metrics(params, batch)  # type: ignore[attr-defined]


def test_a_factorization_machine_adds_weights_and_products_of_all_pairs() -> None:
    task, batch = load_task("factorization_machine", {"rank": 3}), make_batch("", 0)
    params = make_params(task, batch)
    # Rows of one key are equal in training; here every place has its own, which the formula allows too.
    for i, found in enumerate(task.predict(params, batch)):  # type: ignore[attr-defined]
        own = slice(batch.x.indptr[i], batch.x.indptr[i + 1])
        x, w, v = batch.x.data[own], params["w"][own, 0], params["v"][own]
        pairs = sum(v[a] @ v[b] * x[a] * x[b] for a in range(x.size) for b in range(a))
        assert found == pytest.approx(params["b"][0] + w @ x + pairs)


def test_rows_without_entries_have_the_sum_zero() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert sum_rows(values, np.array([0, 0, 2, 2, 3, 3])).tolist() == [0, 3, 0, 4, 0]
    assert sum_rows(values[:0], np.array([0, 0])).tolist() == [0]


def test_dense_data_and_wrong_labels_are_named() -> None:
    task = load_task("sparse_logistic_regression", {})
    with pytest.raises(TaskError, match="features are dense"):
        keys_of(task, declared_tables(task), Batch(np.ones((2, 2)), np.ones(2), 2))
    with pytest.raises(TaskError, match="needs labels 0/1 or -1/\\+1"):
        task.init(np.random.default_rng(), make_batch("", 0))
    task = load_task("matrix_factorization", {})
    with pytest.raises(TaskError, match="two keys for each example"):
        keys_of(task, declared_tables(task), make_batch("", 0))


#: From θ, keys and values of an example, and its label, to what the gradient is in each place of θ.
Slope = Callable[[dict[str, Any], tuple[Any, Any], float], dict[Any, Any]]


def one_process(job: Job, slope: Slope) -> dict[str, Any]:
    """Descend the mean gradient of every round, with a row for each key; `slope` is that of one example."""
    learner = Learner(job)
    surveys = [learner.survey(shard) for shard in range(job.data.shards)]
    learner.prepare(max(survey.classes for survey in surveys), None)
    keys, dtype = np.arange(80), np.dtype(np.float64)
    rows: dict[str, Any] = {
        name: dict(enumerate(initial_rows(job.train.seed, name, table, keys, dtype)))
        for name, table in learner.tables.items()
    }
    theta = rows | {name: value.copy() for name, value in learner.initial(0).items()}
    assert job.train.steps is not None
    for step in range(job.train.steps):
        batches = [learner.batch(shard, step) for shard in range(job.data.shards)]
        total: dict[Any, Any] = {}
        for batch in batches:
            for i in range(batch.n):
                own = slice(batch.x.indptr[i], batch.x.indptr[i + 1])
                for place, value in slope(theta, (batch.x.indices[own], batch.x.data[own]), batch.y[i]).items():
                    total[place] = total.get(place, 0.0) + value / sum(b.n for b in batches)
        for place, value in total.items():
            array = theta[place[0]][place[1]] if len(place) == 2 else theta[place[0]]
            array -= job.optimizer.learning_rate * value
    return theta


def factorization_slope(theta: dict[str, Any], example: tuple[Any, Any], y: float) -> dict[Any, Any]:
    """Rendle 2010, equation 1, with the log loss."""
    keys, x = example
    w, v = [theta["w"][key][0] for key in keys], [theta["v"][key] for key in keys]
    pairs = [(a, b) for a in range(x.size) for b in range(x.size) if a != b]
    score = theta["b"][0] + sum(w * x) + sum(v[a] @ v[b] * x[a] * x[b] for a, b in pairs) / 2
    error = 1 / (1 + np.exp(-score)) - y
    found: dict[Any, Any] = {("b",): error}
    for a, key in enumerate(keys):
        found["w", key] = error * x[a]
        found["v", key] = error * sum((v[b] * x[a] * x[b] for b in range(x.size) if b != a), np.zeros(v[a].size))
    return found


def ratings_slope(theta: dict[str, Any], example: tuple[Any, Any], y: float) -> dict[Any, Any]:
    """Koren, Bell & Volinsky 2009, equation 5, without its regularization."""
    (user, film), _ = example
    p, q = theta["factors"][user], theta["factors"][film]
    error = 2 * (theta["mean"][0] + p[0] + q[0] + p[1:] @ q[1:] - y)
    return {
        ("mean",): error,
        ("factors", user): error * np.array([1, *q[1:]]),
        ("factors", film): error * np.array([1, *p[1:]]),
    }


@pytest.mark.parametrize(
    ("use", "source", "slope"),
    [
        ("factorization_machine", "server.sparsetask:words", factorization_slope),
        ("matrix_factorization", "conformance.models:ratings", ratings_slope),
    ],
)
def test_a_training_is_that_of_one_process(use: str, source: str, slope: Slope) -> None:
    job = Job.from_dict(
        {
            "task": {"use": use, "options": {"rank": 2, "scale": 0.3}},
            "data": {"source": source, "shards": 3, "batch_size": 10},
            "train": {"steps": 8, "dtype": "float64"},
        }
    )
    training, expected = Training(job).finish(at_once, at_once), one_process(job, slope)
    for name, value in training.theta.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9)
    assert training.run.tables is not None
    for name, contents in training.run.tables.contents().items():
        assert contents.keys.size > 15
        for key, row in zip(contents.keys.tolist(), contents.rows, strict=True):
            np.testing.assert_allclose(row, expected[name][key], rtol=1e-9, atol=1e-14)


def train(use: str, options: dict[str, Any], data: dict[str, Any], **sections: Any) -> tuple[dict[str, Any], Any]:
    """Train in this process; return the metrics on the test data, and θ."""
    job = Job.from_dict({"task": {"use": use, "options": options}, "data": data, **sections})
    training = Training(job).finish(at_once, at_once)
    assert training.run.tables is not None
    assert training.run.census is not None
    theta = training.theta
    for name, contents in training.run.tables.contents().items():
        theta |= dict(zip(tensor_names(name), contents.in_order(), strict=True))
    batch = open_test(job, training.run.census.features, training.run.census.classes)
    return evaluate(job, theta, batch, Path()), theta


@pytest.mark.skipif(MUSHROOMS is None, reason="the mushroom data (agaricus.txt.*) are not beside the project")
def test_ftrl_tells_mushrooms_apart_by_less_than_half_of_the_features() -> None:
    assert MUSHROOMS is not None
    found, theta = train(
        "sparse_logistic_regression",
        {},
        {
            "source": str(MUSHROOMS / "agaricus.txt.train"),
            "test": str(MUSHROOMS / "agaricus.txt.test"),
            "batch_size": 128,
        },
        train={"epochs": 10, "reduce": "sum"},
        optimizer={"name": "ftrl", "learning_rate": 5.0, "l1": 50.0},
    )
    assert found["test_accuracy"] >= 0.999
    assert (theta["w.rows"] == 0).mean() >= 0.5


def test_a_factorization_machine_learns_what_only_pairs_tell(tmp_path: Path) -> None:
    """The class is whether two signs agree, which no single one of them tells."""
    rng = np.random.default_rng(2)
    for name, rows in (("train", 600), ("test", 300)):
        a, b, noise = rng.integers(0, 2, rows), rng.integers(0, 2, rows), rng.integers(0, 20, rows)
        lines = [f"{int(p == q)} {1 + p}:1 {3 + q}:1 {5 + n}:1\n" for p, q, n in zip(a, b, noise, strict=True)]
        (tmp_path / f"{name}.svm").write_text("".join(lines))
    data = {"source": str(tmp_path / "train.svm"), "test": str(tmp_path / "test.svm"), "batch_size": 50}
    sections: dict[str, Any] = {"train": {"epochs": 15}, "optimizer": {"name": "adagrad", "learning_rate": 0.3}}
    found, _ = train("factorization_machine", {"rank": 4, "scale": 0.3}, data, **sections)
    assert found["test_accuracy"] == 1
    found, _ = train("sparse_logistic_regression", {}, data, **sections)
    assert found["test_accuracy"] < 0.7


def test_matrix_factorization_learns_what_users_make_of_films(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users, films, noise = rng.normal(0, 0.7, (30, 3)), rng.normal(0, 0.7, (20, 3)), 0.1
    for name, rows in (("train", 2000), ("test", 300)):
        u, f = rng.integers(0, 30, rows), rng.integers(0, 20, rows)
        rating = 3 + users[u, 0] + films[f, 0] + (users[u, 1:] * films[f, 1:]).sum(axis=1) + rng.normal(0, noise, rows)
        lines = [f'u{a},"film no. {b}",{r:.3f}\n' for a, b, r in zip(u, f, rating, strict=True)]
        (tmp_path / f"{name}.csv").write_text("user,film,rating\n" + "".join(lines))
    found, theta = train(
        "matrix_factorization",
        {"rank": 2, "l2": 0.001},
        {
            "source": str(tmp_path / "train.csv"),
            "test": str(tmp_path / "test.csv"),
            "label": "rating",
            "hash": ["user", "film"],
            "batch_size": 50,
            "shards": 2,
        },
        train={"epochs": 20},
        optimizer={"name": "adagrad", "learning_rate": 0.3},
    )
    assert found["test_rmse"] < 1.3 * noise
    assert theta["factors.keys"].size == 50
