"""The errors a person or a peer process sees.

RLHFError
├── ConfigError        the user's mistake: one line, exit code 2, before any model is loaded
├── ServiceError       a process or server of the run failed, or did not answer within its deadline
│   └── Unauthorized   the peer refused the access token
└── PromptDropped      one prompt's misfortune: its group is dropped and counted
"""

from __future__ import annotations


class RLHFError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(RLHFError):
    """A setting is wrong. The message names the value and the remedy; a program ends with exit code 2."""


class ServiceError(RLHFError):
    """A peer failed or missed its deadline. The message names the peer."""


class Unauthorized(ServiceError):
    """The peer answered 401: the two sides do not hold the same token."""


class PromptDropped(RLHFError):
    """One prompt yields no group to train on; the run goes on without it."""
