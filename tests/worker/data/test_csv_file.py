import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from paramserver.wire.errors import DataError
from paramserver.worker.data import open_source
from paramserver.worker.data.csv_file import CsvSource


@pytest.fixture
def write(tmp_path):
    def write(text, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def read_all(path, label):
    source = open_source(path, label)
    return source.read(0, source.rows)


@given(
    table=arrays(
        np.float64,
        array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    ),
    header=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
    last_end=st.booleans(),
    data=st.data(),
)
def test_any_numbers_written_are_read_back_by_any_range(
    tmp_path_factory, table, header, end, delimiter, last_end, data
):
    lines = [delimiter.join(map(repr, row)) for row in table.tolist()]
    if header:
        lines.insert(0, delimiter.join(f"c{i}" for i in range(table.shape[1])))
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes((end.join(lines) + (end if last_end else "")).encode())
    source = CsvSource(path, "")
    assert (source.rows, source.features) == (len(table), table.shape[1] - 1)
    start = data.draw(st.integers(0, len(table) - 1))
    stop = data.draw(st.integers(start + 1, len(table)))
    x, y = source.read(start, stop)
    np.testing.assert_array_equal(np.column_stack([x, y]), table[start:stop])


@pytest.mark.parametrize(("label", "expected"), [("", 3), ("c", 3), ("a", 1), ("b", 2), ("0", 1), ("-2", 2), ("1", 2)])
def test_the_label_is_found_by_name_by_number_or_at_the_end(write, label, expected):
    x, y = open_source(str(write("a,b,c\n1,2,3\n")), label).read(0, 1)
    assert y.tolist() == [expected]
    assert x.tolist() == [[value for value in (1, 2, 3) if value != expected]]


def test_quoted_names_blank_lines_spaces_and_a_byte_order_mark_are_understood(write):
    path = write('\ufeff"size, cm", weight ,y\n\n1, 2 ,"3"\n\n4,5,6\n\n')
    source = open_source(str(path), "weight")
    x, y = source.read(0, 2)
    assert x.tolist() == [[1, 3], [4, 6]]
    assert y.tolist() == [2, 5]


def test_a_header_of_years_is_a_header_if_the_label_is_in_it(write):
    path = write("2019,2020,sales\n1,2,3\n")
    assert open_source(str(path), "sales").rows == 1
    with pytest.raises(DataError, match=r":1: column 2 is 'sales' among numbers"):
        open_source(str(path), "")


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("", "", "the file is empty"),
        ("\n\n", "", "the file is empty"),
        ("a,b\n", "", "there is a header but no row"),
        ("a,b\n1,2\n3,x\n", "", r"data\.csv:3: column 1 \('b'\) is 'x'; a finite number"),
        ("1,2\n\n3,\n", "", r"data\.csv:3: column 1 is ''; a finite number"),
        ("1,2\nnan,2\n", "", r"data\.csv:2: column 0 is 'nan'; a finite number"),
        ("1,2\n1,1e999\n", "", r"data\.csv:2: column 1 is '1e999'; a finite number"),
        ("1,2\n1_0,3\n", "", r"data\.csv:2: column 0 is '1_0'"),
        ("1,2\n3,4,5\n", "", r"data\.csv:2: 3 cells, 2 are expected"),
        ("a,b\n1,2,3\n4,5,6\n", "", r"data\.csv:2: 3 cells, 2 are expected"),
        ("1,2\n3\n", "", r"data\.csv:2: 1 cells, 2 are expected"),
        ("1\n2\n", "", "1 column found; at least one feature and the label"),
        (
            "a,target\n1,2\n",
            "tagret",
            r"no label column 'tagret', did you mean 'target'\? Columns: a, target",
        ),
        ("1,2\n", "y", "there is no header, so the label 'y' names no column"),
        ("1,2\n", "2", "label column 2 does not exist: columns are numbered 0 to 1"),
        ("y,y,a\n1,2,3\n", "y", r"names 2 columns: \[0, 1\]"),
        (b"1,2\n3,\xff\n", "", r"data\.csv:2: not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(write, text, label, message):
    path = str(write(text))
    with pytest.raises(DataError, match=message):
        read_all(path, label)


def test_only_the_rows_asked_for_are_parsed(write):
    source = open_source(str(write("1,2\n3,4\nbroken,6\n")))
    assert source.read(0, 2)[1].tolist() == [2, 4]
    with pytest.raises(DataError, match=":3:"):
        source.read(2, 3)


def entries(x):
    return [
        dict(zip(x.indices[a:b].tolist(), x.data[a:b].tolist(), strict=True))
        for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)
    ]


def key(title, text):
    digest = hashlib.blake2b(title.encode() + b"\0" + text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def test_columns_of_text_become_keys_and_numbers_keep_their_column(write):
    path = write('city,hour,y,price\nGraz,"a, b",1,2.5\n Porto ,,0,-1\nGraz,x,1,0\n')
    source = open_source(str(path), "y", hash=["hour", "city"])
    x, y = source.read(0, 3)
    assert y.tolist() == [1, 0, 1]
    assert entries(x) == [
        {key("hour", "a, b"): 1, key("city", "Graz"): 1, 3: 2.5},
        {key("hour", ""): 1, key("city", "Porto"): 1, 3: -1},
        {key("hour", "x"): 1, key("city", "Graz"): 1, 3: 0},
    ]
    again, _ = source.read(1, 2)
    assert entries(again) == entries(x)[1:2]


def test_without_a_header_columns_are_hashed_by_number(write):
    source = open_source(str(write("u1,f1,3\nu2,f1,4\n")), "2", hash=["0", "1"])
    x, y = source.read(0, 2)
    assert y.tolist() == [3, 4]
    assert entries(x)[0] == {key("0", "u1"): 1, key("1", "f1"): 1}


@pytest.mark.parametrize(
    ("text", "hash", "message"),
    [
        ("a,b,y\nu,1,1\nv,w,1\n", ["a"], r"data.csv:3: column 1 \('b'\) is 'w'; a finite number"),
        ("a,b,y\nu,1,1\nv,1\n", ["a"], "data.csv:3: 2 cells, 3 are expected"),
        ('a,y\n"u,1\nv",1\n', ["a"], "data.csv:2"),
        ("a,b,y\nu,1,1\n", ["aa"], "no label column 'aa', did you mean 'a'"),
        ("a,b,y\nu,1,1\n", ["a", "a"], "column 'a', which is named twice"),
        ("a,b,y\nu,1,1\n", ["y"], "column 'y', which is the label"),
    ],
)
def test_wrong_text_columns_are_named(write, text, hash, message):
    with pytest.raises(DataError, match=message):
        open_source(str(write(text)), "y", hash=hash).read(0, 2 if "v" in text else 1)


def test_only_csv_is_hashed(write):
    for source in (write("1 2:3\n", "data.svm"), "builtin:linear", "module:function"):
        with pytest.raises(DataError, match=r"data\.hash names columns of a csv file"):
            open_source(str(source), hash=["a"])
