"""Hypothesis without its deadline per example: on a busy machine that measures the machine."""

from hypothesis import settings

settings.register_profile("reward_server", deadline=None)
settings.load_profile("reward_server")
