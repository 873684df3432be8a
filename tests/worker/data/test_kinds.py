import gzip

import numpy as np
import pytest

from paramserver.wire.errors import DataError
from paramserver.worker.data import open_source


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"a,b\n1,2\n", "CsvSource"),
        (b"1,2\n3,4\n", "CsvSource"),
        (b"1 3:1 4:2\n", "SvmlightSource"),
        (b"# a comment\n\n-1 3:1\n", "SvmlightSource"),
    ],
)
def test_text_of_any_name_is_told_apart_by_its_content(tmp_path, content, kind):
    (tmp_path / "train").write_bytes(content)
    assert type(open_source("train", base=tmp_path)).__name__ == kind


def test_binary_files_of_any_name_are_told_apart_by_their_content(tmp_path):
    np.save(tmp_path / "table.npy", np.ones((3, 2)))
    np.savez(tmp_path / "arrays.npz", x=np.ones((4, 2)), y=np.ones(4))
    images = b"\0\0\x08\x03" + np.array([5, 1, 1], ">u4").tobytes() + bytes(5)
    (tmp_path / "images.idx3").write_bytes(gzip.compress(images))
    (tmp_path / "labels.idx1").write_bytes(b"\0\0\x08\x01\0\0\0\x05" + bytes(5))
    for name, rows in (("table.npy", 3), ("arrays.npz", 4)):
        (tmp_path / name).rename(tmp_path / name.replace(".", "-"))
        assert open_source(name.replace(".", "-"), base=tmp_path).rows == rows
    assert open_source("images.idx3", base=tmp_path).rows == 5


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such data file"):
        open_source("gone.csv", base=tmp_path)
    with pytest.raises(DataError, match="not a file"):
        open_source(str(tmp_path))


def test_a_path_with_a_colon_is_a_file_where_one_exists(tmp_path):
    (tmp_path / "a:b").write_text("1,2\n")
    assert open_source("a:b", base=tmp_path).rows == 1
