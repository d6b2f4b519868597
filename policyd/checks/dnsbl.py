"""Refuses clients, senders or names that stand on blocklists, by the sum of the lists' weights.

The sites are those of Postfix's ``postscreen_dnsbl_sites``: each entry whose filter lets a reply of its zone through adds its
weight once. A score of ``threshold`` or more refuses; one of ``allow_threshold`` or less ends the chain in the mail's favour.
All lists are asked side by side. Nobody is listed by a list that is sick, silent, off or refuses to answer, nor by a reply
outside of 127.0.0.0/8. The finding, for the ``when`` of checks further down, is the score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

from policyd.answer import DUNNO, Answer, clip, escape, make_answer
from policyd.blocklists import Blocklist, Listing, is_refusal, public_name, reversed_address
from policyd.checks import Context
from policyd.dnsbl_sites import (
    ONLY_REFUSALS,
    DnsblSite,
    least_score,
    most_score,
    parse_zone,
    sites,
    without_key,
)
from policyd.inquiry import Inquiry
from policyd.opinion import OFF, Opinion
from policyd.request import MX, RCPT, SUBMISSION, Request
from policyd.senderpolicy import policy_domain
from policyd.settings import Disagreement, boolean, fill, list_of, one_of, setting, string, template
from policyd.steering import Steering

#: Scores that are remembered; when there are more, those remembered first go first.
MOST_SCORES = 20_000
#: However short the lists' TTLs are, a score with no listing in it counts so long, ms.
LEAST_MS = 60_000
TEXT_FIELDS = ("kind", "address", "zone", "reason", "score", "ref")

CLIENT = "client"
#: What is looked up, by ``lookup``: where it stands in the request, and what it is called in the text.
_LOOKUPS: dict[str, tuple[Callable[[Request], str], str]] = {
    CLIENT: (attrgetter("client_address"), "client"),
    "sender": (attrgetter("sender_domain"), "sender domain"),
    "helo": (attrgetter("helo_name"), "HELO name"),
    "client-name": (attrgetter("client_name"), "client name"),
    "reverse-client-name": (attrgetter("reverse_client_name"), "client name"),
}


def _score(value: Any) -> int:
    """A whole number, also a negative one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number, as 3 or -4")
    return value


def _zone(value: Any) -> str:
    return parse_zone(string(value))


def _public(value: Any) -> tuple[str, str]:
    """A zone and the name that others may see, as in Postfix's ``postscreen_dnsbl_reply_map``."""
    words = string(value).split()
    if len(words) != 2:
        shown = " ".join(public_name(word.lower()) for word in words)[:200]
        raise ValueError(
            f"{shown!r}: write the zone and its public name, as 'abcdef.bl.example.net bl.example.net'"
        )
    return parse_zone(words[0]), parse_zone(words[1])


@dataclass(frozen=True)
class Options:
    """The section of a ``dnsbl`` check."""

    sites: tuple[DnsblSite, ...] = setting(
        sites, help="The lists: zone[=filter][*weight], as in postscreen_dnsbl_sites."
    )
    threshold: int = setting(_score, 1, help="The score from which on mail is refused.")
    allow_threshold: int = setting(
        _score, 0, help="The score, below 0, from which on downwards no further check is asked; 0: none."
    )
    lookup: str = setting(one_of(*_LOOKUPS), CLIENT, help="What is looked up.")
    on_listed: str = setting(one_of("reject", "defer"), "reject", help="Refuse for good, or for now.")
    text: str = setting(
        template(*TEXT_FIELDS),
        "Service unavailable; {kind} [{address}] blocked using {zone}{reason}. ref {ref}",
        help="The text of the refusal.",
    )
    txt: bool = setting(boolean, False, help="Ask for the list's own reason (TXT), too, and tell it.")
    untested: tuple[str, ...] = setting(
        list_of(_zone),
        (),
        help="Zones without the test entries of RFC 5782; they are tested by random names alone.",
    )
    public_names: tuple[tuple[str, str], ...] = setting(
        list_of(_public),
        (),
        help="Zones and the names that others may see instead, for zones with a key in them.",
    )
    even_under_stress: bool = setting(boolean, False, help="Ask also while Postfix says stress=yes.")
    even_authenticated: bool = setting(
        boolean, False, help="Ask also about mail of one's own users and networks."
    )


class Sum(NamedTuple):
    """What the lists' replies add up to."""

    score: int
    #: The list to name in the refusal; ``None``: there is none.
    named: Blocklist | None
    #: For the log: each list that has it with its replies and what they add, and each that could not say, with the reason.
    reason: str
    #: By zone of those that list, what each adds.
    added: Mapping[str, int]


class _Known(NamedTuple):
    """A score, and how long it counts."""

    #: Ledger time, ms.
    until: int
    #: Until when it is the same client's: before, it is not counted again in the lists' figures.
    told_until: int
    #: Of the lists' health.
    epoch: int
    #: The lists that were off.
    off: frozenset[str]
    opinion: Opinion | None


class Check:
    """Adds up what the lists say, and remembers the sum."""

    stages: ClassVar[frozenset[str]] = frozenset({RCPT})
    steadfast: ClassVar[bool] = False
    needs: Mapping[str, frozenset[str]]

    def __init__(self, options: Options, context: Context) -> None:
        _agree(options)
        if context.direction == SUBMISSION and not options.even_authenticated:
            raise Disagreement(
                "for",
                "with for = 'submission' it would ask nothing; write for = 'mx', or even_authenticated = true",
            )
        #: The lists that it asks, each once.
        self.blocklists = lists_of(options)
        self._sites = {
            each.zone: tuple(site for site in options.sites if site.zone == each.zone)
            for each in self.blocklists
        }
        self.threshold = options.threshold
        self._lists = context.blocklists
        self._options = options
        self._value, self._kind = _LOOKUPS[options.lookup]
        self._code = ("550", "5.7.1 ") if options.on_listed == "reject" else ("450", "4.7.1 ")
        self._skips_own = not options.even_authenticated
        self._skips_stress = not options.even_under_stress
        self._known: dict[str, _Known] = {}
        directions = (MX, SUBMISSION) if options.even_authenticated else (MX,)
        self.needs = {each: frozenset({RCPT}) for each in directions if context.direction in ("any", each)}

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """The refusal of what is listed, the score as finding, none when no list answers; ``None`` for what is not looked up."""
        if (self._skips_own and request.direction == SUBMISSION) or (self._skips_stress and request.stress):
            return None
        value = self._value(request)
        off = self._off(steering, now) if steering.modes else frozenset()
        known = self._known.get(value)
        if known is not None and now < known.until and known.epoch == self._lists.epoch and known.off == off:
            return known.opinion
        name = self.name_of(value)
        if not name:
            return None
        lists = [each for each in self.blocklists if each.public not in off]
        if not lists:
            return None
        epoch = self._lists.epoch
        listings = await self._lists.look_up(lists, name, inquiry.due)
        opinion = await self._judge(lists, listings, name, value, inquiry.due)
        told = self._known.get(value)
        self._remember(value, _known(listings, now, epoch, off, opinion, told))
        # Several recipients of one mail are one client.
        if told is None or now >= told.told_until:
            self._lists.tally(lists, name, listings)
        return opinion

    def _off(self, steering: Steering, now: int) -> frozenset[str]:
        """The lists that the admin has turned off."""
        return frozenset(
            each.public for each in self.blocklists if steering.mode_of(each.subject, now) == OFF
        )

    def name_of(self, value: str) -> str:
        """``value`` as lists are asked for it; empty for what none can list."""
        if self._options.lookup == CLIENT:
            return reversed_address(value)
        # An address literal and a name without a dot are nobody's domain; Postfix's "unknown" is one of these.
        return policy_domain(value.removesuffix("."))

    def add_up(self, lists: Sequence[Blocklist], listings: Sequence[Listing]) -> Sum:
        """The score of what the lists said."""
        score, named, weightiest = 0, None, 0
        said: dict[str, int] = {}
        replies, silent = [], []
        for blocklist, listing in zip(lists, listings, strict=True):
            if not listing.codes:
                if not listing.known:
                    silent.append(f"{blocklist.public} ({escape(listing.why, 60)})")
                continue
            said[blocklist.zone] = 0
            for site in self._sites[blocklist.zone]:
                if any(site.passes(code) for code in listing.codes):
                    said[blocklist.zone] += site.weight
                    # The list to name is that of the largest weight, as in postscreen.
                    if site.weight > weightiest:
                        named, weightiest = blocklist, site.weight
            score += said[blocklist.zone]
            replies.append(f"{blocklist.public} {'/'.join(listing.codes[:4])} {said[blocklist.zone]:+d}")
        clean = len(lists) - len(silent)
        reason = (
            f"score {score}: {', '.join(replies) or f'on none of {clean}'}" if clean else "no list answers"
        )
        if silent:
            reason += f"; not counted: {', '.join(silent)}"
        return Sum(score, named if score >= self._options.threshold else None, reason, said)

    async def _judge(
        self, lists: Sequence[Blocklist], listings: Sequence[Listing], name: str, value: str, due: float
    ) -> Opinion:
        """What the listings come to; without a finding when no list answers."""
        score, named, reason, _ = self.add_up(lists, listings)
        if len(lists) < len(self.blocklists):
            reason += f"; off: {', '.join(each.public for each in self.blocklists if each not in lists)}"
        if not any(listing.known for listing in listings):
            return Opinion(reason=reason)
        if named is not None:
            told = await self._lists.text(named, name, due) if self._options.txt else ""
            return Opinion(self._answer(named, score, value, told), reason, finding=score)
        final = self._options.allow_threshold < 0 and score <= self._options.allow_threshold
        return Opinion(DUNNO, reason, final, finding=score)

    def _answer(self, blocklist: Blocklist, score: int, value: str, told: str) -> Answer:
        text = fill(
            self._options.text,
            {
                "kind": self._kind,
                "address": escape(value, 100),
                "zone": blocklist.public,
                # What the list's keeper wrote must not break the answer, nor pass for one of its fields.
                "reason": f"; {escape(told.strip(), 120).rstrip(' .').replace('{', '(')}"
                if told.strip()
                else "",
                "score": str(score),
                "ref": "{ref}",
            },
        )
        return make_answer(self._code[0], clip(self._code[1] + text))

    def _remember(self, value: str, known: _Known) -> None:
        if len(value) > 255:
            return
        self._known.pop(value, None)
        if len(self._known) >= MOST_SCORES:
            del self._known[next(iter(self._known))]
        self._known[value] = known


def _known(
    listings: Sequence[Listing],
    now: int,
    epoch: int,
    off: frozenset[str],
    opinion: Opinion | None,
    told: _Known | None,
) -> _Known:
    """How long the score counts: as the lists' TTLs say; a listing, and that nobody could say, only as long as they say."""
    least = min((listing.ttl for listing in listings), default=0.0)
    told_until = told.told_until if told is not None and now < told.told_until else now + LEAST_MS
    until = now + int(least * 1000)
    if all(listing.known and not listing.codes for listing in listings):
        until = max(until, now + LEAST_MS)
    return _Known(until, told_until, epoch, off, opinion)


def lists_of(options: Options) -> tuple[Blocklist, ...]:
    """The lists that a check with these options asks, each once."""
    names = dict(options.public_names)
    return tuple(
        Blocklist(zone, public_name(zone, names), options.lookup != CLIENT, zone not in options.untested)
        for zone in dict.fromkeys(site.zone for site in options.sites)
    )


def _agree(options: Options) -> None:
    """
    :raises Disagreement: keys that do not go together.
    """
    zones = {site.zone for site in options.sites}
    names = dict(options.public_names)
    shown = ", ".join(sorted(public_name(zone, names) for zone in zones))
    for key, wanted in (("untested", options.untested), ("public_names", names)):
        for zone in wanted:
            if zone not in zones:
                raise Disagreement(
                    key, f"{key} names {public_name(zone)}, which no site asks; the zones are {shown}"
                )
    highest, lowest = most_score(options.sites), least_score(options.sites)
    if options.threshold < 1:
        raise Disagreement(
            "threshold", f"threshold = {options.threshold} would refuse everybody; write 1 or more"
        )
    if options.threshold > highest:
        raise Disagreement(
            "threshold",
            f"no sum of weights reaches threshold = {options.threshold}: together they are {highest}; lower it, "
            "or raise a weight",
        )
    if options.allow_threshold > 0:
        raise Disagreement(
            "allow_threshold", f"allow_threshold = {options.allow_threshold} must be below 0, or 0 for none"
        )
    if options.allow_threshold < lowest:
        raise Disagreement(
            "allow_threshold",
            f"no sum of weights reaches allow_threshold = {options.allow_threshold}: the negative ones are {lowest} together; "
            "raise it, or add an allow list with a weight below 0",
        )
    for site in options.sites:
        single = [ranges[0][0] for ranges in site.filter if len(ranges) == 1 and ranges[0][0] == ranges[0][1]]
        refused = len(single) == 4 and is_refusal(site.zone, ".".join(map(str, single)))
        if refused or site.filter[:3] == ONLY_REFUSALS:
            raise Disagreement(
                "sites",
                f"{without_key(site.text)!r} waits for a reply that is a refusal to answer, or no reply of a list, "
                "and never counts; remove it",
            )
        if not any(low <= 127 <= high for low, high in site.filter[0]):
            raise Disagreement(
                "sites",
                f"{without_key(site.text)!r} waits for replies outside of 127.0.0.0/8, which never count; correct the filter",
            )
