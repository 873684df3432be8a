"""Shows the progress of a run on stderr: a live view on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paramserver.client.cli.plain import PlainLines
from paramserver.client.training import Progress


@contextmanager
def shown() -> Iterator[Progress]:
    """Give a function that takes updates; what it shows ends with the block."""
    if sys.stderr.isatty():
        from rich.console import Console

        from paramserver.client.cli.live import live

        with live(Console(stderr=True)) as view:
            yield view.show
    else:
        yield PlainLines().show
