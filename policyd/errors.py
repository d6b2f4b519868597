"""The errors policyd raises on purpose, split by who has to act.

::

    PolicydError
    ├── UserError            the admin's input; shown as one line each, never with a traceback
    │   ├── ConfigError      the configuration file; carries every problem found, with its place
    │   └── NotFound         something named that does not exist; exit code 3
    ├── ProtocolError        the peer sent what is no policy request; answered by a disconnect
    └── StoreError           the database
        ├── StoreBusy        locked or out of space: the same statement may succeed later
        ├── StoreDamaged     the file is no (longer a) sound database
        └── StoreRefused     a newer schema, a second daemon, no permission: needs the admin
"""

from __future__ import annotations

from collections.abc import Sequence


class PolicydError(Exception):
    """Base of everything that policyd raises on purpose."""


class UserError(PolicydError):
    """Something the admin asked for cannot be done; the text says what, where and what to do."""


class ConfigError(UserError):
    """The configuration is refused. ``problems`` holds one line each, every problem at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class NotFound(UserError):
    """What the admin named does not exist."""


class ProtocolError(PolicydError):
    """The bytes received are no policy request (Postfix SMTPD_POLICY_README)."""


class StoreError(PolicydError):
    """The database cannot do what was asked."""


class StoreBusy(StoreError):
    """A passing trouble: the database is locked, the disk is full."""


class StoreDamaged(StoreError):
    """The file is not a sound database any more."""


class StoreRefused(StoreError):
    """The database is not for us to open: newer schema, second daemon, permissions."""
