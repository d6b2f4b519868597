"""The configuration file: read once into frozen, typed sections, all problems at once, each with its place."""

from policyd.config.doubts import doubts, missing_places
from policyd.config.load import load, policy_version
from policyd.config.rescue import Rescued, rescue
from policyd.config.sections import (
    Alerts,
    AlertSection,
    CheckSection,
    Config,
    Dns,
    Fail,
    Keep,
    Listener,
    Log,
    Server,
    Store,
)
from policyd.config.show import documented_keys, show

__all__ = [
    "AlertSection",
    "Alerts",
    "CheckSection",
    "Config",
    "Dns",
    "Fail",
    "Keep",
    "Listener",
    "Log",
    "Rescued",
    "Server",
    "Store",
    "documented_keys",
    "doubts",
    "load",
    "missing_places",
    "policy_version",
    "rescue",
    "show",
]
