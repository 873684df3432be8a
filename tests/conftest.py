"""What holds for every test."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# A busy machine must not fail a property; how long the whole may take is pytest's business. What CI says of a commit
# it says again; elsewhere every run looks at other examples.
settings.register_profile("steady", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("steady")

# A shell has what it starts in the background ignore Ctrl-C, and so would every process of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
