import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from paramserver.wire.errors import DataError
from paramserver.worker.data import idx_file as module
from paramserver.worker.data import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 3), dtype=np.uint8)
LABELS = np.arange(10, dtype=np.uint8)
CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array):
    shape = struct.pack(f">HBB{array.ndim}I", 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture(params=["", ".gz"])
def pair(tmp_path, request):
    pack = gzip.compress if request.param else bytes
    (tmp_path / f"train-images-idx3-ubyte{request.param}").write_bytes(pack(idx(IMAGES)))
    (tmp_path / f"train-labels-idx1-ubyte{request.param}").write_bytes(pack(idx(LABELS)))
    return tmp_path / f"train-images-idx3-ubyte{request.param}"


def test_images_are_flattened_and_scaled_and_the_labels_found_by_name(pair, monkeypatch):
    monkeypatch.setattr(module, "SKIP_BYTES", 7)
    source = open_source(str(pair))
    assert (source.rows, source.features) == (10, 12)
    x, y = source.read(3, 8)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, IMAGES[3:8].reshape(5, 12).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(y, LABELS[3:8])


def test_only_the_bytes_up_to_the_last_row_are_read(pair):
    content = pair.read_bytes()
    if pair.suffix == ".gz":
        pair.write_bytes(gzip.compress(idx(IMAGES)[: 16 + 12 * 5]))
        source = open_source(str(pair))
        assert len(source.read(2, 5)[0]) == 3
        with pytest.raises(DataError, match="ends 12 bytes too early"):
            source.read(5, 6)
    else:
        pair.write_bytes(content[:-1])
        with pytest.raises(DataError, match=r"135 bytes found; its shape \(10, 4, 3\) needs 136"):
            open_source(str(pair))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_values_that_are_not_bytes_keep_their_type_and_size(tmp_path, dtype):
    values = np.array([[1, -2], [3, 100]], dtype=dtype)
    (tmp_path / "x.idx").write_bytes(idx(values))
    (tmp_path / "y.idx").write_bytes(idx(LABELS[:2]))
    x, _ = open_source("x.idx", "y.idx", tmp_path).read(0, 2)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x, values)


def test_a_missing_label_file_is_named(pair):
    labels = Path(str(pair).replace("images", "labels").replace("idx3", "idx1"))
    labels.unlink()
    with pytest.raises(DataError, match=rf"{labels.stem}.* was expected; name one as data\.label"):
        open_source(str(pair))
    pair.rename(pair.with_name("pixels"))
    with pytest.raises(DataError, match=r"label file is missing: name one as data\.label"):
        open_source(str(pair.with_name("pixels")))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(IMAGES), idx(LABELS[:9]), "10 rows, but .* has 9 labels"),
        (idx(LABELS), idx(LABELS), "do not fit"),
        (idx(IMAGES), idx(IMAGES), "do not fit"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "holds no values"),
        (idx(IMAGES), b"\0\0\x08", "ends 1 bytes too early"),
        (idx(IMAGES), b"\0\0\x07\x01\0\0\0\0", "not an idx file"),
        (gzip.compress(idx(IMAGES), mtime=0), b"\x1f\x8bjunk", "cannot be decompressed"),
        (gzip.compress(b"text, not images", mtime=0), idx(LABELS), "not an idx file"),
    ],
)
def test_malformed_files_are_refused(tmp_path, images, labels, message):
    (tmp_path / "images-idx3").write_bytes(images)
    (tmp_path / "labels-idx1").write_bytes(labels)
    with pytest.raises(DataError, match=message):
        open_source("images-idx3", base=tmp_path)


def test_fashion_mnist_as_debian_ships_it():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    source = open_source("t10k-images-idx3-ubyte.gz", base=folder)
    assert (source.rows, source.features) == (10000, 784)
    x, y = source.read(0, 1000)
    assert (x.min(), x.max()) == (0, 1)
    assert set(y) == set(range(10))
