import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paramserver.client.files import atomically, write_text, write_theta
from paramserver.wire.errors import RequestError

#: Names that collide with a parameter of np.savez, a folder, and a non-ASCII one.
THETA = {"file": np.arange(6.0).reshape(2, 3), "layer/0": np.float32([1, 2]), "β": np.array(3.0)}


def test_both_formats_give_back_the_same_tensors(tmp_path: Path) -> None:
    for name in ("theta.npz", "theta.safetensors"):
        write_theta(tmp_path / name, THETA)
    with np.load(tmp_path / "theta.npz", allow_pickle=False) as archive:
        from_npz = dict(archive)
    for loaded in (from_npz, load_file(tmp_path / "theta.safetensors")):
        assert loaded.keys() == THETA.keys()
        for name, values in THETA.items():
            assert loaded[name].dtype == values.dtype
            np.testing.assert_array_equal(loaded[name], values, strict=True)


@pytest.mark.parametrize("name", ["theta.npz", "theta.safetensors"])
def test_the_same_parameters_give_the_same_bytes_with_ordinary_permissions(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").touch()
    write_theta(tmp_path / name, THETA)
    first = (tmp_path / name).read_bytes()
    write_theta(tmp_path / name, THETA)
    assert (tmp_path / name).read_bytes() == first
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomically(path) as temporary:
            temporary.write_text("new, but not all of i")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["theta.pkl", "theta", "missing/theta.npz"])
def test_what_cannot_be_written_is_a_wrong_request(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=name):
        write_theta(tmp_path / name, THETA)
    assert list(tmp_path.iterdir()) == []
