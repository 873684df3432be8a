"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A busy machine must not fail a property; how long the whole may take is pytest's business.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
