"""The configuration as plain sentences, for those who are held to it: what counts as a violation, the limits, what follows.

Pure, and without what helps an attacker: no allow lists, exceptions or members, and of blocklists the public names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from policyd.blocklists import SUBJECT, public_name
from policyd.checks import dnsbl
from policyd.config import CheckSection, Config
from policyd.opinion import ENFORCE, OFF, SHADOW
from policyd.request import MX
from policyd.sentence import SHARE, USUAL, Sentence
from policyd.suspending import PERMANENT
from policyd.tiers import Tier
from policyd.units import Limit, format_size, spoken_window

#: What is said of a rule that is only tried.
TRIAL = " (This rule is being tried: nothing is refused by it yet.)"


class Section(NamedTuple):
    """A heading and its sentences."""

    title: str
    sentences: tuple[str, ...]


def policy(config: Config, modes: Mapping[str, str]) -> tuple[str, list[Section]]:
    """The title and the sections. ``modes`` are those that were set by hand, by the name of the check or detector."""
    words = _Words(config, modes)
    # Postfix takes mail for localhost, too; to those who read this it is no address.
    domains = [domain for domain in sorted(config.site.domains) if "." in domain.strip(".")]
    who = ", ".join(domains) or "this server"
    sections = [
        Section("How much may be sent", tuple(words.limits())),
        Section("What counts as a violation", tuple(words.violations())),
        Section("What follows", tuple(words.consequences())),
        Section("Mail from outside", tuple(words.inbound())),
        Section("What is recorded", tuple(words.records())),
    ]
    return f"Acceptable use of mail at {who}", [section for section in sections if section.sentences]


class _Words:
    def __init__(self, config: Config, modes: Mapping[str, str]) -> None:
        self.config = config
        self.modes = modes

    def mode(self, name: str, configured: str) -> str:
        # "*" stands for all: a pause leaves only what is off as it is.
        by_hand = self.modes.get(name, configured)
        paused = self.modes.get("*")
        return paused if paused and by_hand == ENFORCE else by_hand

    def _checks(self, *uses: str) -> Iterator[tuple[CheckSection, str]]:
        """Checks that are not off, and what is to be added to each sentence about them."""
        for check in self.config.checks:
            mode = self.mode(check.name, check.mode)
            if check.use in uses and mode != OFF:
                yield check, TRIAL if mode == SHADOW else ""

    # --- limits ------------------------------------------------------------------------------------------------------

    def limits(self) -> Iterator[str]:
        for check, trial in self._checks("quota"):
            options = check.options
            internal = " Mail among our own domains does not count." if options.count == "external" else ""
            if options.limits:
                whom = {
                    "user": "Each account",
                    "user-domain": "All accounts of a domain together",
                    "sender": "Each sender address",
                    "sender-domain": "All senders of a domain together",
                    "client": "Each sending server" if check.direction == MX else "Each client",
                    "server": "All accounts of this server together",
                }[options.per]
                yield f"{whom} may send {_limits(options.limits)}.{internal}{trial}"
            else:
                yield from self._tiers(internal, trial)

    def _tiers(self, internal: str, trial: str) -> Iterator[str]:
        tiers = self.config.tiers
        for tier in sorted(tiers.all.values(), key=lambda tier: tier.name != tiers.default):
            whom = f'An account in the tier "{tier.name}"' if tier.name != tiers.default else "An account"
            if not tier.limits:
                yield f"{whom} may send without a limit of its own."
                continue
            yield f"{whom} may send {_limits(tier.limits)}.{internal}{trial}"
            internal = ""
            if tier.promote is not None:
                yield _promotion(tier)
        if len(tiers.all) > 1:
            yield "Ask postmaster if you need to send more; newsletters and ticket systems belong into a tier of their own."

    # --- violations --------------------------------------------------------------------------------------------------

    def violations(self) -> Iterator[str]:
        if any(True for _ in self._checks("quota")):
            yield "Sending more than the limits above. A message that does not fit is refused whole, and uses up nothing."
        for _, trial in self._checks("sender_login"):
            yield f"Sending with a sender address that does not belong to the account.{trial}"
        for detect in self.config.detects:
            section = detect.section
            mode = self.mode(section.name, section.mode)
            if mode == OFF:
                continue
            follows = (
                "the account is suspended" if section.then == "suspend" else "the administrators look into it"
            )
            trial = TRIAL if mode == SHADOW else ""
            yield f"{_violation(section.when)}: {follows}.{trial}"

    def consequences(self) -> Iterator[str]:
        for check, _ in self._checks("quota"):
            if check.options.limits and check.options.per != "user":
                continue
            yield {
                "defer": "Mail over a limit is refused for now. The refusal says which limit, and when there is room again.",
                "reject": "Mail over a limit is refused for good. The refusal says which limit, and when there is room again.",
                "hold": "Mail over a limit is kept until an administrator has looked at it.",
            }[check.options.on_breach]
            break
        suspends = [
            detect
            for detect in self.config.detects
            if detect.section.then == "suspend"
            and self.mode(detect.section.name, detect.section.mode) == ENFORCE
        ]
        if suspends:
            yield from self._ladder()
        if any(True for _ in self._checks("bans")):
            yield "An administrator may bar an account, a sender or a server from sending, for a time or until further notice."
        yield (
            'Each refusal ends with a reference such as "ref 7F3K2". Give it to postmaster: it finds the decision, '
            "the rule and the numbers."
        )

    def _ladder(self) -> Iterator[str]:
        suspend = self.config.suspend
        steps = [
            "until an administrator releases it" if step == PERMANENT else f"for {_time(step)}"
            for step in suspend.ladder
        ]
        if len(steps) == 1:
            yield f"A suspended account cannot send {steps[0]}."
        else:
            times = (
                "the first time",
                "the second time",
                "the third time",
                "the fourth time",
                "the fifth time",
            )
            said = [f"{time} {step}" for time, step in zip(times, steps, strict=False)]
            last = f", and from then on {steps[-1]}" if len(steps) > len(times) else ""
            yield f"A suspended account cannot send: {_and(said)}{last}."
            yield f"A suspension is forgotten after {_time(suspend.forget_after)}."
        yield "Whoever is suspended should change the password, and then write to postmaster."

    # --- the rest ----------------------------------------------------------------------------------------------------

    def inbound(self) -> Iterator[str]:
        for check, trial in self._checks("dnsbl"):
            enough, adding = _lists(check.options, self.modes)
            if not (enough or adding):
                continue
            what = {
                "client": "Servers",
                "sender": "Sender domains",
                "helo": "HELO names",
            }.get(check.options.lookup, "Servers, by their names,")
            how = "for good" if check.options.on_listed == "reject" else "for now"
            if not enough:
                yield f"{what} listed by enough of {_and(adding)} are refused {how}.{trial}"
                continue
            more = f"; a listing by {_and(adding, 'or')} adds up with others" if adding else ""
            yield f"{what} listed by {_and(enough)} are refused {how}{more}.{trial}"
        for check, trial in self._checks("spf"):
            refused = [
                words
                for key, words in (
                    ("on_fail", "says that the server may not send for it"),
                    ("on_softfail", "says that the server probably may not send for it"),
                    ("on_neutral", "does not say whether the server may send for it"),
                    ("on_none", "has no SPF record"),
                    ("on_permerror", "has an SPF record that cannot be understood"),
                )
                if getattr(check.options, key) != "dunno"
            ]
            if refused:
                yield f"Mail is refused when its sender's domain {_and(refused, 'or')} (SPF).{trial}"
        for check, trial in self._checks("greylist"):
            yield (
                f"A server that is not known here yet may be asked to try again after {_time(check.options.delay)}; "
                f"mail servers do that by themselves.{trial}"
            )

    def records(self) -> Iterator[str]:
        yield (
            "Of each message sender, recipients, size, the sending machine, the time and the decision are recorded, never its "
            f"text; these records are removed after {_time(self.config.keep.decisions)}."
        )


def _lists(options: dnsbl.Options, modes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The public names of the lists that can have mail refused each by itself, and of those that only can together."""
    names = dict(options.public_names)
    weights: dict[str, int] = {}
    for site in options.sites:
        name = public_name(site.zone, names)
        if site.weight > 0 and modes.get(SUBJECT + name) != OFF:
            weights[name] = weights.get(name, 0) + site.weight
    if sum(weights.values()) < options.threshold:
        return [], []
    enough = [name for name, weight in weights.items() if weight >= options.threshold]
    return enough, [name for name in weights if name not in enough]


def _promotion(tier: Tier) -> str:
    assert tier.promote is not None
    return (
        f"After {_time(tier.promote.after)} of clean sending, and at least {tier.promote.min_messages} messages, it goes to "
        f'the tier "{tier.promote.to}".'
    )


def _violation(sentence: Sentence) -> str:
    """A detector's sentence, about "you"."""
    window = spoken_window(sentence.window)
    within = f"within {'one ' if ' ' not in window else ''}{window}"
    if sentence.kind == SHARE:
        return f"More than {sentence.amount} % of an account's deliveries failing {within}, of at least {sentence.least}"
    if sentence.kind == USUAL:
        return (
            f"Sending to more than {sentence.amount} times as many {sentence.noun} as the account usually does {within}, "
            f"and to at least {sentence.least}"
        )
    nouns = _NOUNS.get(sentence.noun)
    what = nouns(sentence.amount) if nouns else f"more than {sentence.amount} {sentence.noun} of one account"
    return f"{what[0].upper()}{what[1:]} {within}"


_NOUNS: dict[str, Callable[[int], str]] = {
    "client networks": lambda n: f"sending from more than {n} different networks with one account",
    "countries": lambda n: f"sending from more than {n} different countries with one account",
    "new recipients": lambda n: f"writing to more than {n} recipients to whom the account has never written",
    "recipients": lambda n: f"writing to more than {n} different recipients",
    "sender addresses": lambda n: f"sending as more than {n} different sender addresses",
    "sender domains": lambda n: f"sending as more than {n} different sender domains",
    "quota breaches": lambda n: f"running into the limits with more than {n} messages",
    "refused requests": lambda n: f"more than {n} refused attempts to send",
    "listed clients": lambda n: f"sending from more than {n} machines that are on blocklists",
}


def _limits(limits: tuple[Limit, ...]) -> str:
    return _and([_limit(limit) for limit in limits])


def _limit(limit: Limit) -> str:
    window = spoken_window(limit.window)
    if limit.unit == "bytes":
        return f"at most {format_size(limit.amount)} in any {window}"
    one = {"messages": "message", "recipients": "recipient"}[limit.unit]
    to = "to " if limit.unit == "recipients" else ""
    return f"{to}at most {limit.amount} {limit.unit if limit.amount != 1 else one} in any {window}"


def _time(ms: int) -> str:
    """A length of time: ``one hour``, ``30 days``."""
    text = spoken_window(ms)
    return text if " " in text or text[0].isdigit() else f"one {text}"


def _and(parts: list[str], word: str = "and") -> str:
    return (
        parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}" if parts else "nothing"
    )
