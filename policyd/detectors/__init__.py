"""The contract of a detector, and how its module is found.

A detector is one file in this package that says what is distinct about a request: ``client_networks.py`` for ``more than 8 client
networks per user in 10m``. Counting, windows and what follows are the same for all (:mod:`policyd.watch`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from policyd.match import NetworkSet
from policyd.opinion import Heard
from policyd.request import Request, Site

#: When a request counts for a detector: always; when its mail passed; when a quota refused it; when another check did.
ASKED, PASSED, BREACHED, REFUSED = "asked", "passed", "breached", "refused"


def no_country(address: str) -> str:
    """Where no database of countries is at hand."""
    return ""


@dataclass(frozen=True)
class Surroundings:
    """What a detector is handed to read."""

    site: Site = field(default_factory=Site)
    #: ``except_networks`` of its section.
    excepted: NetworkSet = field(default_factory=NetworkSet)
    #: The country of an address, as ISO 3166-1 alpha-2; empty when it is not known.
    country_of: Callable[[str], str] = no_country
    #: The names of the checks ``use = "dnsbl"`` that look up the client.
    blocklist_checks: frozenset[str] = frozenset()


class Seen(NamedTuple):
    """A request as it was settled, for detectors to look at."""

    request: Request
    heard: Sequence[Heard]
    #: The check that refused it; empty when it passed.
    by: str
    #: The folded recipients, as far as they are known: at END-OF-MESSAGE those that passed at RCPT.
    recipients: Sequence[str]
    #: Those of them that the account has never written to.
    strangers: Sequence[str]


class Detector(Protocol):
    """What a detector's module offers as ``Detector``."""

    #: When a request counts: one of the words above.
    counts: str
    #: Whether it looks at how much is sent: a grant, and the tier ``bulk``, quiet it.
    volume: bool
    #: Whether it needs the memory of whom an account has written to.
    remembers: bool

    def __init__(self, around: Surroundings) -> None: ...

    def values(self, seen: Seen) -> Iterable[str]:
        """The values of which distinct ones are counted; each at most 256 characters."""


def names() -> list[str]:
    """What can be counted, as it stands in a sentence."""
    return sorted(module.name.replace("_", " ") for module in pkgutil.iter_modules(__path__))


def load(noun: str) -> type[Detector]:
    """The detector for ``noun``; :class:`LookupError` when there is none."""
    if noun not in names():
        raise LookupError(f"policyd cannot count {noun!r}; it counts {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{noun.replace(' ', '_')}")
    detector: type[Detector] = module.Detector
    return detector


def describe() -> Mapping[str, str]:
    """What each detector counts, and the first line of its module's docstring."""
    texts = {}
    for name in names():
        module = importlib.import_module(f"{__name__}.{name.replace(' ', '_')}")
        texts[name] = (module.__doc__ or "").strip().split("\n")[0]
    return texts
