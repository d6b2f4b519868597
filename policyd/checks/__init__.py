"""The contract of a check, and how its module is found.

A check is one file in this package with a frozen dataclass ``Options`` (its section of the configuration) and a class ``Check``.
It reads what it is handed in :class:`Context`, gives an :class:`~policyd.opinion.Opinion` or ``None``, and never writes.
It imports no Twisted, no sqlite3, no dns. Time is an argument.

A check may wait, for asyncio futures only. It is first driven outside of any task, because most never wait: what needs
the current task (``asyncio.timeout``, ``wait_for``) belongs behind the future that it awaits, not into the check.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from policyd.blocklists import Blocklists, NoBlocklists
from policyd.inquiry import Inquiry
from policyd.lookup import NoResolver, Resolver
from policyd.opinion import Opinion
from policyd.request import Request, Site
from policyd.senderpolicy import NoSpf, SpfEvaluator
from policyd.steering import Steering
from policyd.suspending import Suspending
from policyd.tiers import Tiers


@dataclass(frozen=True)
class Context:
    """What a check is handed to read."""

    #: The check's name: ``name`` of its section, else ``use``.
    name: str
    #: ``submission``, ``mx`` or ``any``: the direction that it is for.
    direction: str
    site: Site = field(default_factory=Site)
    tiers: Tiers = field(default_factory=Tiers)
    resolver: Resolver = field(default_factory=NoResolver)
    blocklists: Blocklists = field(default_factory=NoBlocklists)
    spf: SpfEvaluator = field(default_factory=NoSpf)
    suspending: Suspending = field(default_factory=Suspending)


class Check(Protocol):
    """What a check module's class ``Check`` offers."""

    #: Stages at which it is asked; empty: at every stage.
    stages: ClassVar[frozenset[str]]
    #: By direction, the stages without which it cannot do what it is for.
    needs: Mapping[str, frozenset[str]]
    #: Whether ``policyctl pause`` and shadow of everything leave it in force.
    steadfast: ClassVar[bool]

    def __init__(self, options: Any, context: Context) -> None: ...

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """The opinion on ``request`` at ledger time ``now``, or ``None`` for no opinion.

        :param inquiry: what the checks before it found, and until when it may wait.
        """


def names() -> list[str]:
    """The checks that policyd brings."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(use: str) -> tuple[type[Any], type[Check]]:
    """``Options`` and ``Check`` of the module that ``use`` names: one of :func:`names`, or a dotted path.

    :raises LookupError: there is no such module, or it is no check.
    """
    path = use if "." in use else f"{__name__}.{use}"
    if ("." not in use and use not in names()) or use.startswith("."):
        raise LookupError(f"there is no check {use!r}; policyd has {', '.join(names())}")
    try:
        module = importlib.import_module(path)
        return module.Options, module.Check
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise LookupError(f"{use!r} cannot be loaded as a check: {error}") from error


def options_of(use: str) -> type[Any]:
    """The ``Options`` class alone, for the configuration."""
    return load(use)[0]


def describe() -> Mapping[str, str]:
    """Each built-in check's name and the first line of its module's docstring."""
    texts = {}
    for name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        texts[name] = (module.__doc__ or "").strip().split("\n")[0]
    return texts
