"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# A busy machine must not fail a property; how long the whole may take is pytest's business. What CI says of a commit
# it says again; elsewhere every run looks at other examples.
settings.register_profile("steady", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("steady")
