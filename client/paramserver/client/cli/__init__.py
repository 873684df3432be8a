"""The command line: `paramserver COMMAND …`.

Results go to stdout, progress and errors to stderr. Exit status: 0 done, 1 the job failed or was stopped, 2 the request
was wrong, 3 a server cannot be reached, 130 interrupted.
"""

from paramserver.client.cli.entry import main

__all__ = ["main"]
