import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.errors import DataError
from paramserver.worker.data import lines as module
from paramserver.worker.data.lines import Lines

text = st.lists(st.sampled_from([b"", b"1", b"22 2", b"#no", b" "]), max_size=12)


@given(lines=text, end=st.sampled_from([b"\n", b"\r\n"]), chunk=st.integers(1, 9), last_end=st.booleans())
def test_lines_are_those_that_python_sees(tmp_path_factory, lines, end, chunk, last_end):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(end.join(lines) + (end if last_end else b""))
    expected = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith(b"#")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        if not expected:
            with pytest.raises(DataError, match="empty"):
                Lines(path, comment=b"#")
            return
        found = Lines(path, comment=b"#")
    assert len(found) == len(expected)
    assert found.read(0, len(found)) == [line for _, line in expected]
    assert [found.place(i) for i in range(len(found))] == [f"{path}:{number}" for number, _ in expected]
    assert found.read(1, 1) == []
