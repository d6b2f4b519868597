"""What the detectors make of a request: marks noted, lines crossed, the suspension that follows, and what passed mail teaches.

Called by settle, within the transaction and including the request that is decided, so that not one message passes beyond a
line. Pure but for what it changes in the state. Whoever has no login is not looked at: nobody can suspend a victim from outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from policyd.accounts import APPRENTICE, DAYS_KEPT, LEARNED, LOGS_LEARNED, MEMORY_BEGAN, PROMOTED, Account
from policyd.answer import Answer
from policyd.detectors import ASKED, PASSED, Detector, Seen
from policyd.opinion import OFF, SHADOW, CounterKey, Heard
from policyd.request import END_OF_MESSAGE, RCPT, SUBMISSION, Request
from policyd.sentence import USUAL, Sentence
from policyd.steering import EVERY_CHECK, Steering, Suspension
from policyd.suspending import PROBATION, Suspending
from policyd.tiers import Tiers
from policyd.units import DAY, format_duration
from policyd.window import Counter

#: Who writes a suspension or a promotion.
AUTHOR = "policyd"
#: A multiple of what is usual is asked for only after so many days on which something was sent.
DAYS_KNOWN = 7
#: Parts of a window in which what is sent is added up.
PARTS = 12
#: Values and decisions that are kept as evidence.
EVIDENCE = 20
#: Units of the counters that delivery results feed.
DELIVERIES, FAILURES = "deliveries", "failures"


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
        """See :class:`policyd.settle.State`."""

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


NOTHING = Found()


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
        self.remembers = any(d.detector is not None and d.detector.remembers for d in self.detects)
        passed = any(
            (d.detector is None or d.detector.counts == PASSED) and d.mode != OFF for d in self.detects
        )
        #: By direction, the stages without which it cannot do what it is for.
        self.needs: Mapping[str, frozenset[str]] = (
            {SUBMISSION: frozenset({RCPT, END_OF_MESSAGE})} if passed else {}
        )

    def look(
        self,
        request: Request,
        heard: Sequence[Heard],
        outcome: str,
        by: str,
        recipients: Sequence[str],
        now: int,
        state: State,
    ) -> Found:
        """Note the request in the marks of its account; what that comes to.

        :param outcome: ``PASSED``, ``BREACHED`` or ``REFUSED`` of :mod:`policyd.detectors`; empty: none of them counts.
        :param by: the check that refused.
        """
        user = request.account
        account = state.change(user)
        strangers: Sequence[str] = ()
        ended = request.stage == END_OF_MESSAGE
        if self.remembers and outcome == PASSED and ended:
            strangers = state.strangers(user, recipients)
        seen = Seen(request, heard, by, recipients, strangers)
        steering, identifier = state.steering, state.next_id()
        paused = bool(steering.modes) and bool(steering.mode_of(EVERY_CHECK, now))
        would: list[str] = []
        worst: Found | None = None
        for detect in self.detects:
            mode = steering.mode_of(detect.name, now) or detect.mode if steering.modes else detect.mode
            if mode == OFF:
                continue
            sentence, detector = detect.sentence, detect.detector
            marks = account.marks.get(detect.name)
            if detector is not None:
                if detector.counts == PASSED:
                    if outcome != PASSED or not ended:
                        continue
                elif detector.counts not in (ASKED, outcome):
                    continue
                values = detector.values(seen)
                if not values:
                    continue
                if marks is None:
                    marks = account.marks[detect.name] = {}
                before, after = note(marks, values, sentence, now, identifier)
                if after <= sentence.amount:
                    continue
                crossed = before <= sentence.amount
                reason = f"{after} {sentence.noun}, more than {sentence.amount} in {format_duration(sentence.window)}"
            elif outcome != PASSED or not ended:
                continue
            elif sentence.kind == USUAL:
                if marks is None:
                    marks = account.marks[detect.name] = {}
                crossed, reason = _above_usual(account, marks, sentence, request, now, identifier)
                if not reason:
                    continue
            else:
                reason = _failing(sentence, user, now, state)
                # Told once until it is well again.
                crossed = not marks
                if not reason:
                    account.marks.pop(detect.name, None)
                    continue
                marks = account.marks[detect.name] = {"": [now, identifier]}
            if detect.volume and self._quiet(account, steering, now):
                continue
            if mode == SHADOW or paused:
                if crossed:
                    would.append(f"{detect.name}: {'suspend' if detect.suspends else 'alert'}: {reason}")
                continue
            suspends = (
                detect.suspends
                and not self.suspending.spares(user)
                and not (detector is not None and detector.remembers and apprentice(steering, now))
            )
            if suspends and worst is None:
                worst = self._suspension(detect, account, marks or {}, reason, request, now)
            elif crossed:
                account.incident_at = now
                state.tell("detect", user, _facts(detect, reason, marks or {}, request))
        if worst is None:
            return Found(would) if would else NOTHING
        return worst._replace(would=would)

    def suspended(self, found: Found, ref: str, request: Request, now: int, state: State) -> None:
        """Write the suspension that ``found`` asks for, with the reference of its first refusal."""
        assert found.suspension is not None
        row = found.suspension._replace(ref=ref)
        detect = next(each for each in self.detects if each.name == row.detector)
        account = state.change(row.user)
        account.strikes = [*self.suspending.remembered(account.strikes, now), now]
        account.incident_at = now
        account.probation_until = row.expires_at + PROBATION if row.expires_at else 0
        marks = account.marks.get(row.detector, {})
        # After its release it begins anew: what it did before must not suspend it once more.
        account.marks = {}
        # A tier that came by itself is lost, and has to be earned again; one given by hand waits.
        if account.tier_by in (PROMOTED, LEARNED):
            account.tier = account.tier_by = ""
        account.tier_since, account.messages = now, 0
        state.suspend(row)
        until = f"for {format_duration(row.expires_at - now)}" if row.expires_at else "until it is released"
        state.record("suspend", row.user, f"{until}, step {row.step}, by {row.detector}: {row.reason}")
        facts = _facts(detect, row.reason, marks, request)
        state.tell(
            "suspend",
            row.user,
            facts | {"step": row.step, "lasts": row.expires_at - now if row.expires_at else 0, "ref": ref},
        )

    def passed(self, request: Request, recipients: Sequence[str], now: int, state: State) -> None:
        """Take in a mail that passed at END-OF-MESSAGE: whom it went to, and what its account has earned by it."""
        account = state.change(request.account)
        if not account.first_at:
            account.first_at = now
            if not account.tier_since:
                account.tier_since = now
        account.last_at = now
        account.messages += 1
        if self.remembers and recipients:
            state.meet(request.account, recipients, now // DAY)
        name = account.tier_of(self.tiers, now)
        tier = self.tiers.all.get(name)
        promote = tier.promote if tier is not None else None
        if (
            promote is not None
            and now - max(account.tier_since, account.incident_at) >= promote.after
            and account.messages >= promote.min_messages
            and now >= account.probation_until
        ):
            account.tier, account.tier_by = promote.to, PROMOTED
            account.tier_since, account.messages = now, 0
            if account.tier_of(self.tiers, now) == promote.to:
                state.record(
                    "tier",
                    request.account,
                    f"{name} -> {promote.to}: clean sending for {format_duration(promote.after)}",
                )

    def _quiet(self, account: Account, steering: Steering, now: int) -> bool:
        if steering.grants_of and steering.granted(account.user, now):
            return True
        tier = self.tiers.all.get(account.tier_of(self.tiers, now))
        return tier is not None and tier.quiet

    def _suspension(
        self,
        detect: Detect,
        account: Account,
        marks: Mapping[str, Sequence[int]],
        reason: str,
        request: Request,
        now: int,
    ) -> Found:
        step, lasts = self.suspending.step(account.strikes, now)
        evidence = json.dumps(evidence_of(detect, marks), separators=(",", ":"))
        row = Suspension(
            account.user, detect.name, reason, evidence, step, "", AUTHOR, now, now + lasts if lasts else 0
        )
        return Found((), self.suspending.answer, detect.name, f"suspended: {reason}", row)


def apprentice(steering: Steering, now: int) -> bool:
    """Whether what an account has never written to is not known well enough to suspend for it."""
    if LOGS_LEARNED in steering.milestones:
        return False
    began = steering.milestones.get(MEMORY_BEGAN)
    return began is None or now - began.created_at < APPRENTICE


def note(
    marks: dict[str, list[int]], values: Iterable[str], sentence: Sentence, now: int, identifier: int
) -> tuple[int, int]:
    """Note ``values`` among ``marks``, oldest first; how many distinct ones the window held before, and with them.

    At most one more than the sentence's amount are kept, the ones seen last: enough to say exactly whether there are more.
    """
    oldest = now - sentence.window
    while marks:
        first = next(iter(marks))
        if marks[first][0] > oldest:
            break
        del marks[first]
    before = len(marks)
    for value in values:
        marks.pop(value, None)
        marks[value] = [now, identifier]
        if len(marks) > sentence.amount + 1:
            del marks[next(iter(marks))]
    return before, len(marks)


def usual_peak(peaks: Sequence[int]) -> int | None:
    """The busiest window of an ordinary day: only one day in ten was busier. ``None`` while too few days are known."""
    if len(peaks) < DAYS_KNOWN:
        return None
    ordered = sorted(peaks)
    return ordered[(len(ordered) * 9 - 1) // 10]


def evidence_of(detect: Detect, marks: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
    """What is kept as evidence: the newest values, where they can be read, and the decisions that brought them."""
    readable = detect.detector is not None and detect.detector.counts == ASKED
    return {
        "values": list(marks)[-EVIDENCE:] if readable else [],
        "decisions": sorted({entry[1] for entry in marks.values()})[-EVIDENCE:],
    }


def _above_usual(
    account: Account,
    marks: dict[str, list[int]],
    sentence: Sentence,
    request: Request,
    now: int,
    identifier: int,
) -> tuple[bool, str]:
    """Add the request up; whether it crosses the line, and what is found beyond it: empty when it is not."""
    amount = request.recipients if sentence.noun == "recipients" else 1
    width = max(1, sentence.window // PARTS)
    oldest = (now - sentence.window + 1) // width
    while marks and int(first := next(iter(marks))) < oldest:
        del marks[first]
    before = sum([entry[0] for entry in marks.values()])
    slot = str(now // width)
    marks[slot] = [marks[slot][0] + amount if slot in marks else amount, identifier]
    after, today = before + amount, now // DAY
    peaks = account.past.setdefault(f"{sentence.noun}/{sentence.window}", [])
    if peaks and peaks[-1][0] == today:
        if after > peaks[-1][1]:
            peaks[-1] = [today, after]
    else:
        peaks.append([today, after])
        del peaks[:-DAYS_KEPT]
    if after < sentence.least:
        return False, ""
    usual = usual_peak([peak for day, peak in peaks if day < today])
    if usual is None:
        return False, ""
    line = max(sentence.least - 1, usual * sentence.amount)
    if after <= line:
        return False, ""
    window = format_duration(sentence.window)
    return (
        before <= line,
        f"{after} {sentence.noun} in {window}, more than {sentence.amount} times the usual {usual}",
    )


def _failing(sentence: Sentence, user: str, now: int, state: State) -> str:
    """What is found; empty when it is nothing."""
    total, failed = (
        state.counter(CounterKey("user", user, unit)).used(sentence.window, now)
        for unit in (DELIVERIES, FAILURES)
    )
    if total < sentence.least or failed * 100 <= total * sentence.amount:
        return ""
    return f"{failed} of {total} deliveries failed in {format_duration(sentence.window)}"


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
