"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadlines: the machines that run this are shared, and a test's time says nothing there.
settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")
