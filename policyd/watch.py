"""What the detectors make of a request: marks noted, lines crossed, the suspension that follows, and what passed mail teaches.

Called by settle, within the transaction and including the request that is decided, so that not one message passes beyond a
line. Pure but for what it changes in the state. Whoever has no login is not looked at: nobody can suspend a victim from outside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from policyd.accounts import APPRENTICE, LEARNED, LOGS_LEARNED, MEMORY_BEGAN, PROMOTED, Account, Repeated
from policyd.answer import DUNNO, REFUSE, Answer
from policyd.detectors import ASKED, PASSED, Detector, Seen
from policyd.marks import above_usual, note
from policyd.opinion import OFF, SHADOW, CounterKey, Heard
from policyd.request import END_OF_MESSAGE, RCPT, SUBMISSION, Request
from policyd.sentence import DISTINCT, SHARE, USUAL, Sentence
from policyd.steering import EVERY_CHECK, Steering, Suspension
from policyd.suspending import PROBATION, Suspending
from policyd.tiers import Tiers
from policyd.units import DAY, format_duration
from policyd.window import Counter

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: What is looked up in the opinions that were heard.
LISTED = "listed clients"
#: Who writes a suspension or a promotion.
AUTHOR = "policyd"
#: Values and decisions that are kept as evidence.
EVIDENCE = 20
#: Units of the counters that delivery results feed.
DELIVERIES, FAILURES = "deliveries", "failures"


@lru_cache(maxsize=256)
def _kept_as(name: str, kind: str, noun: str) -> str:
    return f"{name}/{noun}" if kind == DISTINCT else f"{name}/{kind} {noun}"


class Detect(NamedTuple):
    """One ``[[detect]]``."""

    name: str
    sentence: Sentence
    #: Whether it suspends; else it alerts.
    suspends: bool
    mode: str
    #: What is distinct; ``None`` where a share or a multiple is compared.
    detector: Detector | None

    @property
    def volume(self) -> bool:
        """Whether it looks at how much is sent."""
        return self.detector.volume if self.detector is not None else self.sentence.kind == USUAL

    @property
    def kept(self) -> str:
        """The name of its marks: one that counts something else from now on has seen nothing yet."""
        return _kept_as(self.name, self.sentence.kind, self.sentence.noun)

    @property
    def remembers(self) -> bool:
        """Whether it needs the memory of whom an account has written to."""
        return self.detector is not None and self.detector.remembers


class State(Protocol):
    """What the watch needs of what settle works on."""

    steering: Steering

    def account(self, user: str) -> Account:
        """What is known of a login; not to be changed."""

    def change(self, user: str) -> Account:
        """The same, to be changed and written."""

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        """Those of the folded ``recipients`` that ``user`` has not written to."""

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        """Remember that ``user`` has written to ``recipients`` on this day."""

    def counter(self, key: CounterKey) -> Counter:
        """See :class:`policyd.state.State`."""

    def suspend(self, row: Suspension) -> None:
        """Write a suspension; it binds the next operation."""

    def tell(self, kind: str, subject: str, facts: Mapping[str, Any]) -> None:
        """Write an event."""

    def record(self, action: str, subject: str, detail: str) -> None:
        """Write a row of history."""

    def next_id(self) -> int:
        """The number that the decision under way will have."""


class Found(NamedTuple):
    """What the detectors found."""

    would: Sequence[str] = ()
    #: The refusal that a suspension begins with.
    answer: Answer | None = None
    by: str = ""
    reason: str = ""
    #: The suspension, still without its reference.
    suspension: Suspension | None = None
    #: A mail to the same recipients as the one before: they are met already.
    familiar: bool = False


class Finding(NamedTuple):
    """More than its line: what a detector found."""

    detect: Detect
    #: Whether it is so since this very request.
    crossed: bool
    reason: str


class View(NamedTuple):
    """A request on its way through the detectors."""

    account: Account
    request: Request
    heard: Sequence[Heard]
    outcome: str
    by: str
    recipients: tuple[str, ...]
    #: What makes the next request alike, whatever is answered.
    asked: tuple[Any, ...]
    identifier: int


NOTHING = Found()
FAMILIAR = Found(familiar=True)


class Watch:
    """All detectors, and what becomes of accounts."""

    def __init__(
        self,
        detects: Sequence[Detect] = (),
        suspending: Suspending | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        self.detects = tuple(detects)
        self.suspending = suspending or Suspending()
        self.tiers = tiers or Tiers()
        #: Whether anything of accounts has to be kept.
        self.active = bool(self.detects) or any(tier.promote for tier in self.tiers.all.values())
        #: Whether recipients have to be remembered.
        self.remembers = any(d.remembers for d in self.detects)
        #: Units of the account's counters that are looked at.
        self.units = (DELIVERIES, FAILURES) if any(d.sentence.kind == SHARE for d in self.detects) else ()
        every = self.detects
        self._asked = [d for d in every if d.detector is not None and d.detector.counts == ASKED]
        self._sent = [d for d in every if d.detector is not None and d.detector.counts == PASSED]
        self._refused = [
            d for d in every if d.detector is not None and d.detector.counts not in (ASKED, PASSED)
        ]
        #: They add up or compare, so that no request is like the one before for them.
        self._usual = [d for d in every if d.sentence.kind == USUAL]
        self._shares = [d for d in every if d.sentence.kind == SHARE]
        self._kept = frozenset(detect.kept for detect in every)
        self._lists = any(d.sentence.noun == LISTED for d in every)
        self._promotes = any(tier.promote for tier in self.tiers.all.values())
        #: By direction, the stages without which it cannot do what it is for.
        self.needs: Mapping[str, frozenset[str]] = {}
        if any(detect.mode != OFF for detect in (*self._sent, *self._usual, *self._shares)):
            self.needs = {SUBMISSION: frozenset({RCPT, END_OF_MESSAGE})}

    def look(
        self,
        request: Request,
        heard: Sequence[Heard],
        outcome: str,
        by: str,
        recipients: tuple[str, ...],
        now: int,
        state: State,
    ) -> Found:
        """Note the request in the marks of its account; what that comes to.

        :param outcome: ``PASSED``, ``BREACHED`` or ``REFUSED`` of :mod:`policyd.detectors`; empty: none of them counts.
        :param by: the check that refused.
        """
        account = state.change(request.account)
        steering, identifier = state.steering, state.next_id()
        # What is switched on later has to see what it has missed.
        modes = steering.generation if steering.modes else 0
        listed = self._lists and _refusing(heard)
        ended = outcome == PASSED and request.stage == END_OF_MESSAGE
        todo: list[Detect] = []
        familiar = False
        # Another policy looks for other marks: to it nothing has come before.
        asked = (self, request.client_address, request.sender_key, modes)
        again = account.asked
        if again is not None and again.key == asked and not (account.over or listed):
            account.asked = _new(Repeated, (again.key, again.values, now, identifier))
        else:
            todo += self._asked
        if ended:
            again, sent = account.sent, (self, recipients)
            if again is not None and again.key == sent and not account.over:
                account.sent = _new(Repeated, (again.key, again.values, now, identifier))
                familiar = True
            else:
                todo += self._sent
        elif outcome != PASSED:
            todo += [d for d in self._refused if d.detector is not None and d.detector.counts == outcome]
        findings: list[Finding] = []
        if todo:
            view = View(account, request, heard, outcome, by, recipients, asked, identifier)
            findings += self._weigh(todo, view, now, state)
        if ended:
            for detect in self._usual:
                amount = request.recipients if detect.sentence.noun == "recipients" else 1
                crossed, reason = above_usual(account, detect.kept, detect.sentence, amount, now, identifier)
                if reason:
                    findings.append(Finding(detect, crossed, reason))
            for detect in self._shares:
                crossed, reason = _failing(account, detect, now, identifier, state)
                if reason:
                    findings.append(Finding(detect, crossed, reason))
        if findings:
            return self._judge(findings, account, request, now, state)._replace(familiar=familiar)
        return FAMILIAR if familiar else NOTHING

    def _mode(self, detect: Detect, steering: Steering, now: int) -> str:
        return steering.mode_of(detect.name, now) or detect.mode if steering.modes else detect.mode

    def _weigh(self, todo: Sequence[Detect], view: View, now: int, state: State) -> list[Finding]:
        """Have these detectors count what is distinct about the request; what they find."""
        account, request = view.account, view.request
        strangers: Sequence[str] = ()
        if self.remembers and view.outcome == PASSED and request.stage == END_OF_MESSAGE:
            strangers = state.strangers(account.user, view.recipients)
        seen = Seen(request, view.heard, view.by, view.recipients, strangers)
        # What repeated before is in them from here on; what nobody looks for any more is not.
        account.marks = {kept: marks for kept, marks in account.seen().items() if kept in self._kept}
        if not account.flows.keys() <= self._kept:
            account.past = account.busiest()
            account.flows = {kept: flow for kept, flow in account.flows.items() if kept in self._kept}
        brought: dict[str, list[tuple[str, tuple[str, ...]]]] = {ASKED: [], PASSED: []}
        findings = []
        for detect in todo:
            sentence, detector = detect.sentence, detect.detector
            if detector is None or self._mode(detect, state.steering, now) == OFF:
                continue
            values = tuple(detector.values(seen))
            if not values:
                continue
            marks, before = note(account.marks.get(detect.kept, {}), values, sentence, now, view.identifier)
            account.marks = {**account.marks, detect.kept: marks}
            account.urgent = True
            if detector.counts in brought and not detector.remembers:
                brought[detector.counts].append((detect.kept, values[-sentence.amount - 1 :]))
            if len(marks) > sentence.amount:
                window = format_duration(sentence.window)
                reason = f"{len(marks)} {sentence.noun}, more than {sentence.amount} in {window}"
                findings.append(Finding(detect, before <= sentence.amount, reason))
        self._repeat(view, todo, brought, bool(findings), now)
        return findings

    def _judge(
        self, findings: Sequence[Finding], account: Account, request: Request, now: int, state: State
    ) -> Found:
        """What follows: alerts are told, what is in shadow only says what it would do, one suspends."""
        steering = state.steering
        paused = bool(steering.modes) and bool(steering.mode_of(EVERY_CHECK, now))
        would: list[str] = []
        worst: Found | None = None
        for detect, crossed, reason in findings:
            mode = self._mode(detect, steering, now)
            if mode == OFF or (detect.volume and self._quiet(account, steering, now)):
                continue
            if mode == SHADOW or paused:
                if crossed:
                    would.append(f"{detect.name}: {'suspend' if detect.suspends else 'alert'}: {reason}")
                continue
            suspends = (
                detect.suspends
                and not self.suspending.spares(account.user)
                and not (detect.remembers and apprentice(steering, now))
            )
            if suspends and worst is None:
                worst = self._suspension(detect, account, reason, now)
            elif crossed:
                account.incident_at, account.urgent = now, True
                marks = account.seen().get(detect.kept, {})
                state.tell("detect", account.user, _facts(detect, reason, marks, request))
        return (worst or NOTHING)._replace(would=would)

    def _repeat(
        self,
        view: View,
        todo: Sequence[Detect],
        brought: Mapping[str, list[tuple[str, tuple[str, ...]]]],
        over: bool,
        now: int,
    ) -> None:
        """Keep what the next request like this one would bring again."""
        account = view.account
        ended = view.outcome == PASSED and view.request.stage == END_OF_MESSAGE
        both = [not group or group[0] in todo for group in (self._asked, self._sent)]
        if both[0]:
            account.asked = Repeated(view.asked, tuple(brought[ASKED]), now, view.identifier)
        if both[1] and ended:
            account.sent = Repeated((self, view.recipients), tuple(brought[PASSED]), now, view.identifier)
        account.over = over or (account.over and not (all(both) and ended))

    def suspended(self, found: Found, ref: str, request: Request, now: int, state: State) -> None:
        """Write the suspension that ``found`` asks for, with the reference of its first refusal."""
        assert found.suspension is not None
        row = found.suspension._replace(ref=ref)
        detect = next(each for each in self.detects if each.name == row.detector)
        account = state.change(row.user)
        account.strikes = (*self.suspending.remembered(account.strikes, now), now)
        account.incident_at = now
        account.on_probation(row.expires_at + PROBATION if row.expires_at else 0)
        marks = account.seen().get(detect.kept, {})
        # After its release it begins anew: what it did before must not suspend it once more.
        account.past = account.busiest()
        account.marks, account.flows, account.asked, account.sent, account.over = {}, {}, None, None, False
        # A tier that came by itself is lost, and has to be earned again; one given by hand waits.
        lost = account.tier_by in (PROMOTED, LEARNED)
        account.put_into("" if lost else account.tier, "" if lost else account.tier_by, now)
        state.suspend(row)
        until = f"for {format_duration(row.expires_at - now)}" if row.expires_at else "until it is released"
        state.record("suspend", row.user, f"{until}, step {row.step}, by {row.detector}: {row.reason}")
        facts = _facts(detect, row.reason, marks, request)
        state.tell(
            "suspend",
            row.user,
            facts | {"step": row.step, "lasts": row.expires_at - now if row.expires_at else 0, "ref": ref},
        )

    def passed(
        self, request: Request, recipients: tuple[str, ...], familiar: bool, now: int, state: State
    ) -> None:
        """Take in a mail that passed at END-OF-MESSAGE: whom it went to, and what its account has earned by it."""
        account = state.change(request.account)
        day = now // DAY
        if not account.first_at:
            account.first_at, account.urgent = now, True
            account.tier_since = account.tier_since or now
        if self.remembers and recipients and not (familiar and account.last_at // DAY == day):
            state.meet(request.account, recipients, day)
        account.last_at = now
        account.messages += 1
        if self._promotes:
            self._promote(account, now, state)

    def _promote(self, account: Account, now: int, state: State) -> None:
        name = account.tier_of(self.tiers, now)
        tier = self.tiers.all.get(name)
        promote = tier.promote if tier is not None else None
        if (
            promote is None
            or now - max(account.tier_since, account.incident_at) < promote.after
            or account.messages < promote.min_messages
            or now < account.probation_until
        ):
            return
        account.put_into(promote.to, PROMOTED, now)
        if account.tier_of(self.tiers, now) == promote.to:
            why = f"clean sending for {format_duration(promote.after)}"
            state.record("tier", account.user, f"{name} -> {promote.to}: {why}")

    def _quiet(self, account: Account, steering: Steering, now: int) -> bool:
        if steering.grants_of and steering.granted(account.user, now):
            return True
        tier = self.tiers.all.get(account.tier_of(self.tiers, now))
        return tier is not None and tier.quiet

    def _suspension(self, detect: Detect, account: Account, reason: str, now: int) -> Found:
        marks = account.seen().get(detect.kept, {})
        step, lasts = self.suspending.step(account.strikes, now)
        evidence = json.dumps(evidence_of(detect, marks), separators=(",", ":"))
        row = Suspension(
            account.user, detect.name, reason, evidence, step, "", AUTHOR, now, now + lasts if lasts else 0
        )
        return Found((), self.suspending.answer, detect.name, f"suspended: {reason}", row)


def _refusing(heard: Sequence[Heard]) -> bool:
    """Whether a check would refuse, in shadow perhaps: a blocklist may have the client."""
    for _, _, opinion, _, _ in heard:
        if opinion is not None and opinion.answer is not DUNNO and opinion.answer.strength == REFUSE:
            return True
    return False


def apprentice(steering: Steering, now: int) -> bool:
    """Whether what an account has never written to is not known well enough to suspend for it."""
    if LOGS_LEARNED in steering.milestones:
        return False
    began = steering.milestones.get(MEMORY_BEGAN)
    return began is None or now - began.created_at < APPRENTICE


def evidence_of(detect: Detect, marks: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
    """What is kept as evidence: the newest values, where they can be read, and the decisions that brought them."""
    readable = detect.detector is not None and detect.detector.counts == ASKED
    return {
        "values": list(marks)[-EVIDENCE:] if readable else [],
        "decisions": sorted({entry[1] for entry in marks.values()})[-EVIDENCE:],
    }


def _failing(account: Account, detect: Detect, now: int, identifier: int, state: State) -> tuple[bool, str]:
    """What is found, empty when it is nothing; and whether it is new since it was well last."""
    sentence, told = detect.sentence, "" in account.marks.get(detect.kept, ())
    total = failed = 0
    deliveries = state.counter(_new(CounterKey, ("user", account.user, DELIVERIES)))
    if deliveries.all:
        total = deliveries.used(sentence.window, now)
        failures = state.counter(_new(CounterKey, ("user", account.user, FAILURES)))
        failed = failures.used(sentence.window, now) if failures.all else 0
    if total < sentence.least or failed * 100 <= total * sentence.amount:
        if told:
            account.marks = {name: marks for name, marks in account.marks.items() if name != detect.kept}
        return False, ""
    if not told:
        account.marks = {**account.marks, detect.kept: {"": (now, identifier)}}
    return not told, f"{failed} of {total} deliveries failed in {format_duration(sentence.window)}"


def _facts(
    detect: Detect, reason: str, marks: Mapping[str, Sequence[int]], request: Request
) -> dict[str, Any]:
    return {
        "detector": detect.name,
        "when": str(detect.sentence),
        "reason": reason,
        **evidence_of(detect, marks),
        "client": request.client_address,
        "helo": request.helo_name,
        "sender": request.sender,
    }
