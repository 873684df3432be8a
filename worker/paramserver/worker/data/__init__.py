"""Data sources: files, built-in sets and the user's own functions, each read by ranges of rows."""

from paramserver.worker.data.kinds import open_source
from paramserver.worker.data.source import Source

__all__ = ["Source", "open_source"]
