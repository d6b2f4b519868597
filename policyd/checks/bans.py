"""Banned logins, senders, sender domains and clients, and suspended logins, are refused, at every stage.

Bans are set with ``policyctl ban user|sender|domain|client VALUE`` and hold from the next request on, also within a session that
is open. The most specific one answers: the login, then the sender address, the sender domain or its nearest parent,
the client address, the smallest network around it. A value in ``never`` holds off the bans of its own kind: a login that is
never banned is still refused from a banned client, and who writes a sender that is never banned gains nothing else by it. A
login's ban needs the login: nobody can use it against somebody from outside. A login that a detector has suspended
(``[[detect]]``, ``[suspend]``) is told the ``text`` of ``[suspend]``, until its time is over or ``policyctl release``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from policyd.answer import clip, escape, make_answer
from policyd.checks import Context
from policyd.inquiry import Inquiry
from policyd.match import domain_of
from policyd.opinion import Opinion
from policyd.request import Request
from policyd.settings import fill, list_of, one_of, setting, string, template
from policyd.steering import Entry, Listing, Steering, canonical_value, client_network


def _never(value: Any) -> str:
    """A login, address, domain or client network that can never be banned."""
    text = string(value)
    # A slash means a network: one that is mistyped is an error, not a domain that nobody has.
    kind = "client" if client_network(text) or "/" in text else "user" if "@" in text.strip("@") else "domain"
    return canonical_value(kind, text)


@dataclass(frozen=True)
class Options:
    """The section of a ``bans`` check."""

    never: tuple[str, ...] = setting(
        list_of(_never), (), help="Logins, addresses, domains and networks that no ban holds for."
    )
    action: str = setting(
        one_of("reject", "defer"), "reject", help="What a banned one is told: for good or for now."
    )
    text: str = setting(
        template("ref", "kind"),
        "Sending is not permitted for this {kind}; contact postmaster. ref {ref}",
        help="The text of the refusal.",
    )


class Check:
    """Looks a request up among the bans."""

    stages: ClassVar[frozenset[str]] = frozenset()
    steadfast: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, frozenset[str]]] = {}

    def __init__(self, options: Options, context: Context) -> None:
        self._options = options
        self._never = Never(options.never)
        self._suspended = context.suspending.answer
        #: No ban now; to be asked again when the decision is settled.
        self._again = Opinion(standing=self)

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion:
        """The refusal when a ban is in force; otherwise the intent to ask again when the decision is settled."""
        return self.judge(request, steering, now) or self._again

    def judge(self, request: Request, steering: Steering, now: int) -> Opinion | None:
        """The refusal when a ban is in force at ledger time ``now``."""
        ban = next(self.fitting(request, steering.bans, now), None) if steering.bans.entries else None
        if ban is None:
            return self._suspension(request, steering, now) if steering.suspensions else None
        kind = "login" if ban.kind == "user" else ban.kind
        text = fill(self._options.text, {"ref": "{ref}", "kind": kind})
        code = ("550 5.7.1 " if self._options.action == "reject" else "450 4.7.1 ").split(" ", 1)
        answer = make_answer(code[0], clip(code[1] + text))
        return Opinion(answer, f"banned {ban.kind} {escape(ban.value) or '<>'}", standing=self)

    def _suspension(self, request: Request, steering: Steering, now: int) -> Opinion | None:
        # A login only: who sends from an own network without one is nobody's account.
        row = steering.suspension_of(request.login, now)
        if row is None:
            return None
        began = f", ref {row.ref}" if row.ref else ""
        return Opinion(self._suspended, f"suspended by {row.detector or row.author}{began}", standing=self)

    def fitting(self, request: Request, bans: Listing, now: int) -> Iterator[Entry]:
        """The bans in force that hold for ``request``, the one that answers first."""
        never = self._never
        if request.account and not never.covers(request.account):
            ban = bans.exact("user", request.account, now)
            if ban is not None:
                yield ban
        if request.knows_sender and not never.covers(request.sender_key):
            ban = bans.exact("sender", request.sender_key, now)
            if ban is not None:
                yield ban
            if request.sender_domain:
                ban = bans.domain(request.sender_domain, now)
                if ban is not None:
                    yield ban
        if not never.covers_client(request.client_address):
            ban = bans.client(request.client_address, now)
            if ban is not None:
                yield ban
            if request.client_name and request.client_name != "unknown":
                ban = bans.domain(request.client_name.lower().rstrip("."), now, kind="client")
                if ban is not None:
                    yield ban


class Never:
    """The values that no ban holds for."""

    def __init__(self, values: tuple[str, ...]) -> None:
        self._names = frozenset(value for value in values if client_network(value) is None)
        self._clients = Listing()
        for value in values:
            if client_network(value) is not None:
                self._clients.put(Entry("client", value, "", "", 0, 0))

    def covers(self, name: str) -> bool:
        """Whether a login or address, or its domain, is among the values."""
        return bool(self._names) and (name in self._names or domain_of(name) in self._names)

    def covers_client(self, address: str) -> bool:
        """Whether a client's address is among the values."""
        return self._clients.client(address, 0) is not None
