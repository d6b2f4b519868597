"""Strangers are asked to try again later; what tries again passes, and is known from then on.

A mail is known by its triplet: the client's network (/24, for IPv6 /64), the sender without what changes from try to try,
and the recipient. The first time it is deferred; from ``delay`` on, within ``retry_window``, it passes, and then as long as
``expire`` after its last mail. A client's network whose mails passed so ``auto_allow`` times, at most once an hour, is not
delayed any more. Where the spf check before it said "pass", the sender's domain stands for the network: a pool of servers
tries again from anywhere. Put it last and give it ``when``, so that it only delays whom nothing else settles. Mail of one's
own users is never delayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from policyd.answer import Answer, clip, make_answer
from policyd.checks import Context
from policyd.checks.allow import find
from policyd.greylisting import CLIENT, PASSED, WAITING, Triplet, normal_sender, origin_of
from policyd.inquiry import Inquiry
from policyd.opinion import Memory, MemoryKey, Opinion, Recalled
from policyd.request import MX, RCPT, SUBMISSION, Request
from policyd.settings import (
    Disagreement,
    boolean,
    delay,
    duration,
    fill,
    list_of,
    one_of,
    setting,
    string,
    template,
    whole,
)
from policyd.steering import Entry, Listing, Steering, canonical_value
from policyd.units import DAY, HOUR, MINUTE, SECOND, format_duration


def _values(kind: str) -> Any:
    return list_of(lambda value: canonical_value(kind, string(value)))


@dataclass(frozen=True)
class Options:
    """The section of a ``greylist`` check."""

    delay: int = setting(delay, 5 * MINUTE, help="How long a stranger has to wait.")
    retry_window: int = setting(
        duration, 2 * DAY, help="How long after the first try the next one must come, or it all begins anew."
    )
    expire: int = setting(duration, 35 * DAY, help="How long a triplet is known after its last mail.")
    auto_allow: int = setting(
        whole, 5, help="After how many successes a client's network is not delayed any more; 0: never."
    )
    spf: str = setting(
        string,
        "spf",
        help="The spf check whose pass lets the sender's domain stand for the client's network; empty: none.",
    )
    except_clients: tuple[str, ...] = setting(
        _values("client"), (), help="Addresses, networks or verified host names that are never delayed."
    )
    except_senders: tuple[str, ...] = setting(
        _values("sender"), (), help="Envelope senders that are never delayed; <> is the null sender."
    )
    except_domains: tuple[str, ...] = setting(
        _values("domain"), (), help="Sender domains, with what is below them, that are never delayed."
    )
    except_recipients: tuple[str, ...] = setting(
        _values("recipient"), (), help="Envelope recipients whose mail is never delayed."
    )
    even_under_stress: bool = setting(
        boolean, False, help="Delay also while Postfix is short of processes (stress)."
    )
    header: str = setting(
        one_of("X-Greylist", ""), "X-Greylist", help="The header of the first mail that passes; empty: none."
    )
    text: str = setting(
        template("seconds", "ref"),
        "Greylisted; try again in {seconds} seconds. ref {ref}",
        help="The text of the deferral.",
    )


class Check:
    """Says which triplet a request is; settle judges it with what is remembered."""

    stages: ClassVar[frozenset[str]] = frozenset({RCPT})
    steadfast: ClassVar[bool] = False

    def __init__(self, options: Options, context: Context) -> None:
        if context.direction == SUBMISSION:
            raise Disagreement(
                "for",
                "delays no mail of one's own users, so for = 'submission' does nothing; write for = 'mx'",
            )
        if options.retry_window <= options.delay:
            raise Disagreement(
                "delay" if options.retry_window == Options.retry_window else "retry_window",
                f"retry_window = '{format_duration(options.retry_window)}' is not longer than delay = "
                f"'{format_duration(options.delay)}', so nothing could ever pass; write a longer one",
            )
        self.needs: Mapping[str, frozenset[str]] = {MX: frozenset({RCPT})}
        self._options = options
        self._except = Listing()
        for kind, values in (
            ("client", options.except_clients),
            ("sender", options.except_senders),
            ("domain", options.except_domains),
            ("recipient", options.except_recipients),
        ):
            for value in values:
                self._except.put(Entry(kind, value, "configuration", "", 0, 0))

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """The intent to look the triplet up; ``None`` for whom it does not delay."""
        options = self._options
        if request.is_submission or (request.stress and not options.even_under_stress):
            return None
        origin = origin_of(request.client_address)
        if not origin:
            return None
        for listing in (self._except, steering.greylist_allows):
            if listing.entries:
                entry = find(listing, request, now)
                if entry is not None:
                    return Opinion(reason=f"not greylisted: {entry.kind} {entry.value or '<>'}")
        if options.spf and request.sender_domain and inquiry.findings.get(options.spf) == "pass":
            origin = "@" + request.sender_domain
        triplet = Triplet(origin, normal_sender(request.sender_key), request.recipient_key).key
        client = MemoryKey(CLIENT, origin) if options.auto_allow else None
        return Opinion(recall=Asked(MemoryKey(WAITING, triplet), MemoryKey(PASSED, triplet), client, options))


class Asked(NamedTuple):
    """One request's triplet (:class:`~policyd.opinion.Recall`)."""

    #: First seen when, and nothing came of it yet.
    waiting: MemoryKey
    #: Passed before.
    passed: MemoryKey
    #: How often triplets of this client passed for the first time; ``None``: nobody asks.
    client: MemoryKey | None
    options: Options

    @property
    def keys(self) -> tuple[MemoryKey, ...]:
        """See :class:`~policyd.opinion.Recall`."""
        both = (self.waiting, self.passed)
        return both if self.client is None else (*both, self.client)

    def judge(self, request: Request, now: int, known: Mapping[MemoryKey, Memory]) -> Recalled:
        """The deferral, the header of a first pass, or nothing to say; and what is to be remembered."""
        options = self.options
        proved = known.get(self.client) if self.client is not None else None
        if proved is not None and proved.hits >= options.auto_allow:
            return Recalled(Opinion(reason=f"client passed {proved.hits} times"), self._seen(proved, now))
        passed, waiting = known.get(self.passed), known.get(self.waiting)
        first = (
            min(fact.first_at for fact in (passed, waiting) if fact is not None) if passed or waiting else now
        )
        if first > now or (passed is None and now - first >= options.retry_window):
            # From another time than this one's clock, or too late: it begins anew.
            passed = waiting = None
            first = now
        if passed is None and waiting is None:
            fresh = Memory(now, now, 0, now + options.retry_window)
            return Recalled(self._deferral(options.delay, "first seen"), {self.waiting: fresh})
        waited = now - first
        if waited < options.delay:
            return Recalled(
                self._deferral(options.delay - waited, f"too early, {_spoken(waited)} after the first")
            )
        if passed is not None:
            again = Memory(first, now, passed.hits + 1, now + options.expire)
            return Recalled(Opinion(reason=f"known, mail {again.hits}"), {self.passed: again})
        remember = {self.passed: Memory(first, now, 1, now + options.expire)}
        if waiting is not None:
            # It has served; the passed one speaks for both.
            remember[self.waiting] = waiting._replace(expires_at=now)
        remember |= self._success(proved, now)
        reason = f"passes, {_spoken(waited)} after the first"
        if not options.header:
            return Recalled(Opinion(reason=reason), remember)
        header = make_answer("PREPEND", f"{options.header}: delayed {waited // SECOND} seconds by policyd")
        return Recalled(Opinion(header, reason), remember)

    def _deferral(self, left: int, reason: str) -> Opinion:
        return Opinion(_deferral(self.options.text, -(-left // SECOND)), f"greylisted: {reason}")

    def _success(self, proved: Memory | None, now: int) -> dict[MemoryKey, Memory]:
        """One more success of the client, at most once an hour: a burst to many recipients proves no more than one mail."""
        if self.client is None:
            return {}
        expires_at = now + self.options.expire
        if proved is None:
            return {self.client: Memory(now, now, 1, expires_at)}
        if now - proved.last_at < HOUR:
            return {}
        return {self.client: Memory(proved.first_at, now, proved.hits + 1, expires_at)}

    def _seen(self, proved: Memory, now: int) -> dict[MemoryKey, Memory]:
        """A client that is not delayed any more stays known while it sends; written at most once an hour."""
        if self.client is None or 0 <= now - proved.last_at < HOUR:
            return {}
        return {self.client: proved._replace(last_at=now, expires_at=now + self.options.expire)}


@lru_cache(maxsize=1024)
def _deferral(text: str, seconds: int) -> Answer:
    text = fill(text, {"seconds": str(seconds), "ref": "{ref}"})
    return make_answer("DEFER_IF_PERMIT", clip("4.2.0 " + text))


def _spoken(ms: int) -> str:
    return format_duration(ms // SECOND * SECOND)
