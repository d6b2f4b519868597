"""How much mail may be sent: messages, recipients or bytes per window, for each user, domain, sender, client or the server.

Without ``limits`` the check is per user and takes the limits of the account's tier, with the account's own ones over them
(``policyctl quota set``). Everything is counted at END-OF-MESSAGE, where the real recipient count and size are known; at
RCPT only an account that has no room at all is refused. A message that does not fit is refused whole and uses up
nothing. A message that alone exceeds a limit can never fit and is refused for good. ``on_breach = "hold"`` lets mail
over the limit into Postfix's hold queue, up to the limit again. All scopes but ``client`` count submission only. If the
database is in trouble, counts go on in memory up to a bound; then the ``fail`` answer of ``[server]`` is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policyd.answer import DUNNO
from policyd.checks import Context
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion, Quota
from policyd.request import END_OF_MESSAGE, RCPT, Request
from policyd.settings import Disagreement, limit, list_of, one_of, setting, template
from policyd.steering import Steering
from policyd.units import Limit

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__

SCOPES = ("user", "user-domain", "sender", "sender-domain", "client", "server")
TEXT_FIELDS = ("unit", "used", "limit", "window", "until", "ref", "user")


@dataclass(frozen=True)
class Options:
    """The section of a ``quota`` check."""

    per: str = setting(
        one_of(*SCOPES), "user", help="What each counter is for; an IPv6 client counts as its /64."
    )
    limits: tuple[Limit, ...] = setting(
        list_of(limit), (), help="Limits, all of which hold; empty: those of the account's tier, or its own."
    )
    count: str = setting(
        one_of("external", "all"),
        "external",
        help="Leave out mail among the site's own domains, or count all.",
    )
    on_breach: str = setting(
        one_of("defer", "reject", "hold"), "defer", help="Refuse for now, refuse for good, or put on hold."
    )
    count_at: str = setting(
        one_of("end-of-message", "rcpt"),
        "end-of-message",
        help="Where mail is counted; rcpt where only that is asked.",
    )
    text: str = setting(
        template(*TEXT_FIELDS),
        "Sending limit reached; {used} of {limit} {unit} per {window}, room again at {until}. ref {ref}",
        help="The text of the refusal.",
    )


class Check:
    """Says which counter and which limits a request is tested against."""

    stages: ClassVar[frozenset[str]] = frozenset({RCPT, END_OF_MESSAGE})
    steadfast: ClassVar[bool] = False

    def __init__(self, options: Options, context: Context) -> None:
        if options.per != "client" and context.direction == "mx":
            raise Disagreement(
                "per",
                f"per = {options.per!r} counts submission only and would count nothing with for = 'mx'; "
                "write for = 'submission', or per = 'client'",
            )
        if options.per != "user" and not options.limits:
            raise Disagreement("per", f"per = {options.per!r} needs limits; tiers are per user")
        self._options = options
        self._tiers = context.tiers
        self._external = context.site.domains if options.count == "external" else None
        self._scope = options.per
        if options.per == "client" and context.direction != "any":
            self._scope = f"client:{context.direction}"
        self._counts_at = RCPT if options.count_at == "rcpt" else END_OF_MESSAGE
        # Which of several recipients are our own is known from what was asked at RCPT.
        needed = {self._counts_at, RCPT} if self._external is not None else {self._counts_at}
        directions = ("submission", "mx") if options.per == "client" else ("submission",)
        self.needs = {
            direction: frozenset(needed)
            for direction in directions
            if context.direction in ("any", direction)
        }

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """The intent to test and count; ``None`` when there is nothing to count the request for."""
        if self._counts_at == RCPT and request.stage != RCPT:
            # What was counted at RCPT already needs no room any more.
            return None
        value = self.value(request)
        if not value:
            return None
        grants: dict[str, int] = {}
        limits, tiers = self._options.limits, None
        if self._scope == "user":
            if not limits:
                if self._tiers.all:
                    # Which tier it is in is known when it is decided.
                    tiers = self._tiers
                else:
                    limits = steering.limits_of(value, (), now)
            grants = steering.granted(value, now)
        if not limits and tiers is None:
            return None
        quota = _new(
            Quota,
            (
                self._scope,
                value,
                self._external,
                limits,
                grants,
                request.stage == self._counts_at,
                self._options.on_breach,
                self._options.text,
                tiers,
            ),
        )
        return _new(Opinion, (DUNNO, "", False, quota, None, None, None))

    def value(self, request: Request) -> str:
        """Whose counter this is within the scope; empty when the request has none."""
        scope = self._options.per
        if scope == "client":
            return request.client_net
        if not request.is_submission:
            return ""
        if scope == "user":
            return request.account
        if scope == "user-domain":
            return request.user_domain
        if scope == "sender":
            return request.sender_key or "<>"
        if scope == "sender-domain":
            return request.sender_domain
        return "server"
