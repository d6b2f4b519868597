"""The decision: bans asked again, all limits tested together, all or nothing counted, one answer.

``settle`` is the only place where something is counted. It runs inside the writer's transaction, one operation after the
other in queue order, over a :class:`State` that shows what the operations before it did. It is pure but for what
it changes in that state: no clock, no SQL.

Identity. Postfix asks again, with the same instance, when an answer was lost. What passed before passes again and counts
nothing, unless a ban came between: then its count is returned. What was refused before is decided afresh.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from policyd.answer import DUNNO, HOLD, REFUSE, Answer, clip, escape, make_answer
from policyd.decision import DEADLINE, HELD, LATE, PASSED, REFUSED, REPEAT, Earlier, Settled
from policyd.opinion import ENFORCE, CounterKey, Heard, Proposal, Quota
from policyd.request import RCPT, Request
from policyd.settings import fill
from policyd.steering import Steering
from policyd.units import MAX_AMOUNT, Limit, format_duration, format_size, spoken_window
from policyd.window import Counter, slot_width

#: Stands for the reference in what was never sent.
NO_REF = "-----"

to_json: Callable[[object], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class State(Protocol):
    """What one batch of operations works on."""

    steering: Steering

    def counter(self, key: CounterKey) -> Counter:
        """The counter of ``key``, as the operations before this one left it; an empty one when there is none."""

    def charge(self, key: CounterKey, amount: int, at: int) -> None:
        """Add ``amount`` (negative: take back) at ledger time ``at`` to the counter of ``key``."""

    def earlier(self, request: Request) -> Earlier | None:
        """The newest decision on the same request (listener, instance, stage, recipient at RCPT) of the last hour."""

    def siblings(self, request: Request) -> Sequence[Earlier]:
        """The decisions at RCPT of the same instance and listener."""

    def next_ref(self) -> str:
        """A reference that was not given out before."""


class Test(NamedTuple):
    """One limit tested: what was in the window before, what the message adds, and whether it fits."""

    __test__ = False

    limit: Limit
    #: The limit with the grants in force.
    allowed: int
    key: CounterKey
    used: int
    amount: int
    fits: bool

    @property
    def alone(self) -> bool:
        """Whether the message by itself is more than the limit."""
        return self.amount > self.allowed


class Tested(NamedTuple):
    """A quota check's tests, and the answer it gives: ``None`` when everything fits."""

    heard: Heard
    quota: Quota
    tests: list[Test]
    worst: Test | None
    answer: Answer | None


def settle(
    request: Request,
    proposal: Proposal,
    now: int,
    state: State,
    local_time: Callable[[int], str],
    forced: Answer | None = None,
    previous: Earlier | None = None,
) -> Settled:
    """Decide ``request`` at ledger time ``now`` and count it in ``state`` if it passes.

    :param local_time: turns a ledger time into text for people, for ``{until}``.
    :param forced: the answer that was given already, when the deadline or a sick store forced it: the request is
        counted if that let it pass, whatever the limits say, and nothing is counted otherwise.
    :param previous: the decision that ``forced`` corrects, when it was settled otherwise in the meantime.
    """
    earlier = previous or (state.earlier(request) if request.instance else None)
    passed_before = earlier is not None and earlier.verdict != REFUSED
    answer, by, reason = proposal.answer, proposal.check, proposal.reason
    mark = REPEAT if earlier is not None else ""
    would: list[str] = []
    ban = None
    quotas: list[Heard] = []
    for heard in proposal.heard:
        opinion = heard.opinion
        if opinion is None:
            continue
        if opinion.standing is not None:
            judged = opinion.standing.judge(request, state.steering, now)
            if judged is not None and heard.mode == ENFORCE:
                answer, by, reason = judged.answer, heard.check, judged.reason
                ban = judged
                break
            if judged is not None:
                opinion = judged
        if opinion.quota is not None:
            quotas.append(heard)
        if heard.mode != ENFORCE and opinion.answer is not DUNNO:
            would.append(f"{heard.check}: {opinion.answer.verb} {fill_ref(opinion.answer.text, NO_REF)}")

    tested: list[Tested] = []
    charges: dict[CounterKey, int] = {}
    if forced is not None:
        answer, by, reason, mark = forced, DEADLINE, "answered before it was decided", LATE
        if forced.strength != REFUSE and not passed_before:
            charges = _charges(request, quotas, now, state)
    elif passed_before and ban is None and earlier is not None:
        # Asked again because the answer was lost: the same answer, nothing counted.
        answer, by, reason = parse_action(earlier.action), earlier.by, "asked again"
        return Settled(
            answer,
            earlier.verdict,
            by,
            reason,
            None,
            "",
            _detail(proposal.heard, tested),
            earlier.charges,
            mark,
        )
    elif answer.strength != REFUSE:
        tested = [_test(heard, request, now, state, local_time) for heard in quotas]
        breach = next((t for t in tested if t.answer is not None and t.heard.mode == ENFORCE), None)
        refusal = next(
            (t for t in tested if t.heard.mode == ENFORCE and t.answer is not None and t.answer.strength == REFUSE),
            breach,
        )
        if refusal is not None and refusal.answer is not None and refusal.answer.strength >= answer.strength:
            answer, by, reason = refusal.answer, refusal.heard.check, _reason(refusal)
        would += [
            f"{t.heard.check}: {t.answer.verb} {fill_ref(t.answer.text, NO_REF)}"
            for t in tested
            if t.answer is not None and t.heard.mode != ENFORCE
        ]
        if answer.strength != REFUSE:
            charges = _charges(request, quotas, now, state)

    if passed_before and answer.strength == REFUSE and earlier is not None:
        for scope, value, unit, amount in json.loads(earlier.charges or "[]"):
            state.charge(CounterKey(scope, value, unit), -amount, earlier.at)
    for key, amount in charges.items():
        state.charge(key, amount, now)
    ref = None
    if answer.strength == REFUSE:
        ref = state.next_ref()
        answer = with_ref(answer, ref)
    verdict = REFUSED if answer.strength == REFUSE else HELD if answer.strength == HOLD else PASSED
    return Settled(
        answer,
        verdict,
        by,
        reason,
        ref,
        " | ".join(would)[:800],
        _detail(proposal.heard, tested),
        to_json([[*key, amount] for key, amount in charges.items()]) if charges else "",
        mark,
    )


def _amounts(request: Request, quota: Quota, state: State) -> dict[str, int]:
    """What the request adds, per unit. Empty when nothing of it counts for this quota."""
    count, whole = request.recipients, 1
    if not quota.counts:
        # Before the count nothing is known but that there is a mail; it asks for the smallest room there is.
        if quota.external is not None and request.internal:
            return {}
        return {"messages": 1, "recipients": 1, "bytes": 1}
    if request.stage == RCPT:
        count = 1
        if quota.external is not None and request.internal:
            return {}
        # Message and octets count with the first recipient that counts.
        before = [s for s in state.siblings(request) if s.verdict != REFUSED and s.recipient != request.recipient]
        if quota.external is not None:
            before = [s for s in before if not _is_internal(request, s.recipient, quota.external)]
        whole = 0 if before else 1
    elif quota.external is not None:
        if request.recipient:
            count = 0 if request.internal else count
        elif not request.sender_key or request.sender_domain in quota.external:
            seen = {s.recipient for s in state.siblings(request) if s.verdict != REFUSED}
            inside = sum(1 for recipient in seen if _is_internal(request, recipient, quota.external))
            # Postfix may have refused some of those that were asked about: of what is not known, assume the most.
            count = min(count, max(len(seen) - inside, count - inside))
        if not count:
            return {}
    return {"messages": whole, "recipients": count, "bytes": min(request.size * whole, MAX_AMOUNT)}


def _is_internal(request: Request, recipient: str, own: frozenset[str]) -> bool:
    sender_is_own = not request.sender_key or request.sender_domain in own
    return sender_is_own and recipient.rpartition("@")[2].lower().rstrip(".") in own


def _key(quota: Quota, unit: str) -> CounterKey:
    return CounterKey(quota.scope, quota.value, unit if quota.external is None else unit + "/external")


def _test(heard: Heard, request: Request, now: int, state: State, local_time: Callable[[int], str]) -> Tested:
    """All limits of one quota check, and its answer if one of them does not fit."""
    assert heard.opinion is not None and heard.opinion.quota is not None
    quota = heard.opinion.quota
    amounts = _amounts(request, quota, state)
    tests: list[Test] = []
    worst: Test | None = None
    for limit in quota.limits if amounts else ():
        key = _key(quota, limit.unit)
        used = state.counter(key).used(limit.window, now)
        allowed = limit.amount + quota.grants.get(limit.unit, 0)
        amount = amounts[limit.unit]
        test = Test(limit, allowed, key, used, amount, used + amount <= allowed)
        tests.append(test)
        if not test.fits and amount and (worst is None or (test.alone and not worst.alone)):
            worst = test
    if worst is None:
        return Tested(heard, quota, tests, None, None)
    return Tested(heard, quota, tests, worst, _breach(quota, tests, worst, request, now, state, local_time))


def _breach(
    quota: Quota,
    tests: list[Test],
    worst: Test,
    request: Request,
    now: int,
    state: State,
    local_time: Callable[[int], str],
) -> Answer | None:
    if quota.on_breach == "hold" and not worst.alone:
        if all(test.used + test.amount <= 2 * test.allowed for test in tests):
            return make_answer("HOLD", "sending limit reached") if quota.counts else None
    counter = state.counter(worst.key)
    room_at = counter.room_at(worst.limit.window, now, worst.used + worst.amount - worst.allowed)
    unit = worst.limit.unit
    as_text = format_size if unit == "bytes" else str
    text = fill(
        quota.text,
        {
            "unit": "of mail" if unit == "bytes" else unit,
            "used": as_text(worst.used),
            "limit": as_text(worst.allowed),
            "window": spoken_window(worst.limit.window),
            "until": "no time" if worst.alone else local_time(room_at),
            "user": escape(quota.value, 64),
            "ref": "{ref}",
        },
    )
    if worst.alone or quota.on_breach == "reject":
        return make_answer("550", "5.7.1 " + clip(text))
    return make_answer("450", "4.7.1 " + clip(text))


def _reason(tested: Tested) -> str:
    worst = tested.worst
    assert worst is not None
    what = "more than the whole limit" if worst.alone else "limit reached"
    return (
        f"{what}: {worst.used}+{worst.amount} of {worst.allowed} {worst.limit.unit}"
        f" per {format_duration(worst.limit.window)}"
    )


def _charges(request: Request, quotas: Sequence[Heard], now: int, state: State) -> dict[CounterKey, int]:
    """What the request adds to which counter: each counter once, however many limits look at it."""
    charges: dict[CounterKey, int] = {}
    for heard in quotas:
        quota = heard.opinion.quota if heard.opinion is not None else None
        if quota is None or not quota.counts:
            continue
        amounts = _amounts(request, quota, state)
        for limit in quota.limits if amounts else ():
            if amounts[limit.unit]:
                key = _key(quota, limit.unit)
                state.counter(key).ask(slot_width(limit.window), now)
                charges[key] = amounts[limit.unit]
    return charges


def _detail(heard: Sequence[Heard], tested: Sequence[Tested]) -> str:
    """The JSON that ``policyctl explain`` reads: each check's opinion and time, each limit's numbers."""
    checks = []
    for h in heard:
        opinion = h.opinion
        if h.error:
            checks.append((h.check, h.mode, "failed", h.micros, h.error[:200]))
        elif opinion is None:
            checks.append((h.check, h.mode, "-", h.micros, ""))
        else:
            outcome = "final" if opinion.final else "limits" if opinion.quota is not None else opinion.answer.verb
            checks.append((h.check, h.mode, outcome, h.micros, opinion.reason))
    limits = [
        (t.heard.check, x.key.scope, x.key.value, x.key.unit, x.limit.window, x.allowed, x.used, x.amount, int(x.fits))
        for t in tested
        for x in t.tests
    ]
    return to_json({"checks": checks, "limits": limits})


def fill_ref(text: str, ref: str) -> str:
    """``text`` with its reference filled in."""
    return text.replace("{ref}", ref)


def with_ref(answer: Answer, ref: str) -> Answer:
    """A refusal that carries ``ref``: where its text says so, else at its end."""
    if "{ref}" in answer.text:
        return Answer(answer.verb, clip(fill_ref(answer.text, ref)))
    return Answer(answer.verb, clip(f"{answer.text} ref {ref}".strip()))


def parse_action(action: str) -> Answer:
    """The answer that was written down as ``str(answer)``."""
    verb, _, text = action.partition(" ")
    return Answer(verb, text)
