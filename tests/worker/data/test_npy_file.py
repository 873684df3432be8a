import zipfile

import numpy as np
import pytest

from paramserver.wire.errors import DataError
from paramserver.worker.data import open_source

X = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
Y = np.arange(20)


def mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.mark.parametrize(("label", "column"), [("", 2), ("-1", 2), ("0", 0), ("1", 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_label_of_a_table_is_a_column(tmp_path, label, column, order):
    np.save(tmp_path / "table.npy", np.asarray(X, order=order))
    x, y = open_source("table.npy", label, tmp_path).read(5, 9)
    np.testing.assert_array_equal(x, np.delete(X, column, axis=1)[5:9])
    np.testing.assert_array_equal(y, X[5:9, column])


def test_the_labels_may_be_another_file_and_images_are_flattened(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    np.save(tmp_path / "y.npy", np.array([[7], [8]]))
    source = open_source("x.npy", "y.npy", tmp_path)
    assert source.features == 12
    x, y = source.read(1, 2)
    assert x.tolist() == [list(range(12, 24))]
    assert y.tolist() == [8]
    assert mapped(x)


@pytest.mark.parametrize("label", ["", "0"])
def test_a_table_stays_in_its_file(tmp_path, label):
    np.save(tmp_path / "table.npy", X)
    assert mapped(open_source("table.npy", label, tmp_path).read(0, 20)[0])


@pytest.mark.parametrize("order", ["C", "F"])
def test_stored_members_of_an_archive_are_mapped_and_compressed_ones_read(tmp_path, order):
    np.savez(tmp_path / "stored.npz", other=np.arange(100), x=np.asarray(X, order=order), y=Y)
    np.savez_compressed(tmp_path / "packed.npz", x=X, y=Y)
    for name, is_mapped in (("stored.npz", True), ("packed.npz", False)):
        x, y = open_source(name, base=tmp_path).read(3, 11)
        np.testing.assert_array_equal(x, X[3:11])
        np.testing.assert_array_equal(y, Y[3:11])
        assert mapped(x) == is_mapped


def test_the_label_names_the_array_of_labels_in_an_archive(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y, other=Y + 1)
    assert open_source("data.npz", "other", tmp_path).read(0, 1)[1].tolist() == [1]
    with pytest.raises(DataError, match=r"no array 'othr', did you mean 'other'\? Arrays: x, y, other"):
        open_source("data.npz", "othr", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "y": Y[:5]}, "x has 20 rows but there are 5 labels"),
        ({"x": X[:, 0], "y": Y}, r"x has shape \(20,\)"),
        ({"x": X, "y": np.column_stack([Y, Y])}, r"and y \(20, 2\)"),
        ({"x": X.astype(str), "y": Y}, "x is <U.* real numbers"),
        ({"x": X.astype(complex), "y": Y}, "x is complex128"),
        ({"x": X[:0], "y": Y[:0]}, "at least one row and one feature"),
        ({"x": X[:, :0], "y": Y}, "at least one row and one feature"),
        ({"x": X.astype(object), "y": Y}, "Python objects"),
        ({"features": X, "y": Y}, "no array 'x'. Arrays: features, y"),
    ],
)
def test_arrays_that_are_no_examples_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_source("data.npz", base=tmp_path)


@pytest.mark.parametrize(
    ("write", "name", "label", "message"),
    [
        (lambda path: path.write_bytes(b"junk"), "a.npy", "", "not a .npy file"),
        (lambda path: path.write_bytes(b""), "a.npy", "", "not a .npy file"),
        (lambda path: path.write_bytes(b"junk"), "a.npz", "", "not a .npz file"),
        (lambda path: np.save(path, X.astype(object), allow_pickle=True), "a.npy", "", "not a .npy file"),
        (lambda path: np.save(path, Y), "a.npy", "", r"shape \(20,\) found"),
        (lambda path: np.save(path, X), "a.npy", "y", "a number from 0 to 2"),
        (lambda path: np.save(path, X), "a.npy", "no.npy", "no such label file"),
        (lambda path: np.save(path, X[:, :1]), "a.npy", "", "1 column found"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, write, name, label, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        open_source(name, label, tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"not a \.npy file"):
        open_source("a.npy", base=tmp_path)


def test_a_member_that_lies_about_its_shape_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", X)
    lying = (tmp_path / "x.npy").read_bytes().replace(b"(20, 3)", b"(99, 9)")
    np.save(tmp_path / "y.npy", Y)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.write(tmp_path / "y.npy", "y.npy")
        archive.writestr("x.npy", lying)
    with pytest.raises(DataError):
        open_source("data.npz", base=tmp_path)
