"""Where the rows of a text file begin and end, so that a worker parses only its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paramserver.wire.errors import DataError

CHUNK_BYTES = 1 << 24
NEWLINE, RETURN = b"\n"[0], b"\r"[0]


class Lines:
    """The lines of a file that hold something, by position; one pass finds them, none is kept.

    Lines that are empty or begin with `comment` do not count, but keep their place in line numbers.

    Raises:
        DataError: if the file holds no such line.
    """

    def __init__(self, path: Path, comment: bytes = b"") -> None:
        self.path = path
        data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
        found = [
            np.flatnonzero(data[offset : offset + CHUNK_BYTES] == NEWLINE) + offset
            for offset in range(0, data.size, CHUNK_BYTES)
        ]
        newlines = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), newlines + 1])
        stops = np.append(newlines, data.size)
        starts, stops = starts[starts < data.size], stops[starts < data.size]
        first = data[starts]
        kept = (stops > starts) & (first != RETURN)
        if comment:
            kept &= first != comment[0]
        self._starts, self._stops = starts[kept], stops[kept]
        self._numbers = np.flatnonzero(kept) + 1
        if not self._starts.size:
            raise DataError(f"{path}: the file is empty; at least one row is expected")

    def __len__(self) -> int:
        return int(self._starts.size)

    def place(self, index: int) -> str:
        """Return `file:line` of a line, counted from 1, for messages."""
        return f"{self.path}:{self._numbers[index]}"

    def read(self, start: int, stop: int) -> list[bytes]:
        """Return these lines, without their ends; only their bytes are read."""
        if start >= stop:
            return []
        origin = int(self._starts[start])
        with self.path.open("rb") as file:
            file.seek(origin)
            text = file.read(int(self._stops[stop - 1]) - origin)
        bounds = zip(
            (self._starts[start:stop] - origin).tolist(),
            (self._stops[start:stop] - origin).tolist(),
            strict=True,
        )
        return [text[a:b].rstrip(b"\r") for a, b in bounds]
