"""The decision: bans asked again, all limits tested together, all or nothing counted, one answer.

``settle`` is the only place where something is counted. It runs inside the writer's transaction, one operation after the
other in queue order, over a :class:`State` that shows what the operations before it did. It is pure but for what
it changes in that state: no clock, no SQL.

Identity. Postfix asks again, with the same instance, when an answer was lost. What passed before passes again and counts
nothing, unless a ban came between: then its count is returned. What was refused before is decided afresh.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring as json_text
from typing import Any, NamedTuple, Protocol

from policyd.accounts import Account
from policyd.answer import (
    DUNNO,
    HEADER,
    HOLD,
    MAX_TEXT_BYTES,
    PASS,
    REFUSE,
    Answer,
    clip,
    escape,
    make_answer,
)
from policyd.decision import DEADLINE, HELD, LATE, PASSED, REFUSED, REPEAT, Earlier, Settled
from policyd.detectors import BREACHED
from policyd.detectors import PASSED as PASSED_ON
from policyd.detectors import REFUSED as REFUSED_BY
from policyd.match import domain_of, fold
from policyd.opinion import (
    ENFORCE,
    CounterKey,
    Heard,
    Memory,
    MemoryKey,
    Proposal,
    Quota,
    Recalled,
)
from policyd.request import END_OF_MESSAGE, RCPT, Request, parsed_address
from policyd.settings import fill
from policyd.steering import Steering, Suspension
from policyd.units import MAX_AMOUNT, Limit, format_duration, format_size, spoken_window
from policyd.watch import NOTHING
from policyd.window import Counter, slot_width

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: Stands for the reference in what was never sent.
NO_REF = "-----"
EMPTY = '""'
#: The admin may want to hear of an account that has used so much of a limit, in per cent.
NEAR = 80
#: What is said to a message that by itself is more than a limit.
TOO_LARGE = (
    "Message too large for the sending limit; {amount} of at most {limit} {unit} per {window}. ref {ref}"
)


class Siblings(Protocol):
    """Who knows what was decided of a mail before."""

    def siblings(self, request: Request) -> Sequence[Earlier]:
        """The decisions at RCPT of the same instance and listener."""


class State(Protocol):
    """What one batch of operations works on."""

    steering: Steering

    def counter(self, key: CounterKey) -> Counter:
        """The counter of ``key``, as the operations before this one left it; an empty one when there is none."""

    def charge(self, key: CounterKey, widths: tuple[int, ...], amount: int, at: int) -> None:
        """Add ``amount`` (negative: take back) at ledger time ``at`` to the counter of ``key``, kept in ``widths`` too."""

    def earlier(self, request: Request) -> Earlier | None:
        """The newest decision on the same request (listener, instance, stage, recipient at RCPT) of the last hour."""

    def siblings(self, request: Request) -> Sequence[Earlier]:
        """The decisions at RCPT of the same instance and listener."""

    def remembered(self, keys: Iterable[MemoryKey], now: int) -> Mapping[MemoryKey, Memory]:
        """Those of ``keys`` that are remembered and have not expired at ledger time ``now``."""

    def remember(self, key: MemoryKey, fact: Memory) -> None:
        """Remember ``fact``; operations after this one see it."""

    def next_ref(self) -> str:
        """A reference that was not given out before."""

    def account(self, user: str) -> Account:
        """What is known of an account; not to be changed."""

    def change(self, user: str) -> Account:
        """The same, to be changed and written."""

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        """Those of the folded ``recipients`` that ``user`` has not written to."""

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        """Remember that ``user`` has written to ``recipients`` on this day."""

    def suspend(self, row: Suspension) -> None:
        """Write a suspension; it binds the next operation."""

    def tell(self, kind: str, subject: str, facts: Mapping[str, Any], once: int = 0) -> None:
        """Write an event.

        :param once: not if the same kind was told of the same subject so many ms ago or less.
        """

    def record(self, action: str, subject: str, detail: str) -> None:
        """Write a row of history."""

    def next_id(self) -> int:
        """The number that the decision under way will have."""


class Trial(NamedTuple):
    """A limit that the message does not fit: what was in the window before, and what the message adds."""

    limit: Limit
    #: The limit with the grants in force.
    allowed: int
    key: CounterKey
    used: int
    amount: int

    @property
    def alone(self) -> bool:
        """Whether the message by itself is more than the limit."""
        return self.amount > self.allowed


class Trials(NamedTuple):
    """A quota check's tests, what it would count, and the answer it gives: ``None`` when everything fits."""

    heard: Heard
    quota: Quota
    #: The numbers of each limit tested, as JSON.
    numbers: list[str]
    charges: list[tuple[CounterKey, tuple[int, ...], int]]
    worst: Trial | None
    answer: Answer | None
    #: Of what fits, where the mail goes beyond :data:`NEAR` of the limit.
    near: Sequence[Trial]


class Counted(NamedTuple):
    """The limits of one unit, with the slot width of each."""

    unit: str
    #: The unit as the counter names it.
    name: str
    limits: tuple[tuple[Limit, int], ...]
    widths: tuple[int, ...]


@lru_cache(maxsize=4096)
def counted(limits: tuple[Limit, ...], external: bool) -> tuple[Counted, ...]:
    """``limits`` by unit: what each counter has to be kept for."""
    groups = []
    for unit in dict.fromkeys(limit.unit for limit in limits):
        own = tuple((limit, slot_width(limit.window)) for limit in limits if limit.unit == unit)
        widths = tuple(dict.fromkeys(width for _, width in own))
        groups.append(Counted(unit, unit + "/external" if external else unit, own, widths))
    return tuple(groups)


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
    answer, by, reason, ref = proposal.answer, proposal.check, proposal.reason, None
    mark = REPEAT if earlier is not None else ""
    would: list[str] = []
    banned = breached = False
    trials: list[Trials] = []
    recalled: list[tuple[Heard, Recalled]] = []
    testing = forced is None and not passed_before and (answer is DUNNO or answer.strength != REFUSE)
    for heard in proposal.heard:
        opinion = heard.opinion
        if opinion is None:
            continue
        if opinion.standing is not None:
            judged = opinion.standing.judge(request, state.steering, now)
            if judged is not None and heard.mode == ENFORCE and forced is None:
                answer, by, reason, banned = judged.answer, heard.check, judged.reason, True
                break
            opinion = judged or opinion
        elif opinion.recall is not None:
            if forced is None and not passed_before:
                facts = state.remembered(opinion.recall.keys, now)
                recalled.append((heard, opinion.recall.judge(request, now, facts)))
            continue
        quota = opinion.quota
        if quota is not None:
            limits = quota.limits
            if quota.tiers is not None:
                limits = limits_of(quota, state.steering, state.account(quota.value), now)
            trials.append(_try(heard, quota, limits, request, now, state, local_time, testing))
        elif heard.mode != ENFORCE and opinion.answer is not DUNNO:
            would.append(_would(heard.check, opinion.answer))

    if forced is not None:
        answer, by, reason, mark = forced, DEADLINE, "answered before it was decided", LATE
        ref = forced.text.rpartition(" ")[2] if forced.strength == REFUSE else None
    elif passed_before and not banned and earlier is not None:
        # Asked again because the answer was lost: the same answer, and nothing is counted.
        detail = _detail(proposal.heard, ())
        answer = parse_action(earlier.action)
        return Settled(
            answer, earlier.verdict, earlier.by, "asked again", None, "", detail, earlier.charges, REPEAT
        )
    elif testing and not banned:
        for trial in trials:
            verdict = trial.answer
            if verdict is None:
                continue
            if trial.heard.mode != ENFORCE:
                would.append(_would(trial.heard.check, verdict))
            elif verdict.strength > answer.strength:
                answer, by, reason, breached = verdict, trial.heard.check, _reason(trial), True

    if recalled and testing and not banned:
        for heard, outcome in recalled:
            said = outcome.opinion
            if said is None or said.answer is DUNNO:
                continue
            if heard.mode != ENFORCE:
                would.append(_would(heard.check, said.answer))
            elif said.answer.strength > answer.strength:
                answer, by, reason, breached = said.answer, heard.check, said.reason, False

    told = proposal.heard
    if recalled:
        outcomes = {heard.check: outcome.opinion for heard, outcome in recalled}
        told = tuple([h._replace(opinion=outcomes.get(h.check, h.opinion)) for h in told])
    strength = PASS if answer is DUNNO else answer.strength
    if strength == HEADER:
        answer, by, reason = _first_new_header(request, told, state) or (DUNNO, by, reason)
        strength = answer.strength
    watch = proposal.watch
    if watch is not None and (passed_before or banned or not request.login):
        watch = None
    found = NOTHING
    recipients: tuple[str, ...] = ()
    if watch is not None:
        recipients = recipients_of(request, state)
        if forced is None and not _let_through(proposal.heard):
            became = PASSED_ON if strength != REFUSE else BREACHED if breached else REFUSED_BY
            refused_by = by if strength == REFUSE else ""
            found = watch.look(
                request, told, "" if reason == "failed" else became, refused_by, recipients, now, state
            )
            would += found.would
            if found.answer is not None:
                answer, by, reason, strength = found.answer, found.by, found.reason, REFUSE
    charges: dict[CounterKey, tuple[tuple[int, ...], int]] = {}
    standing = ""
    if strength == REFUSE:
        if ref is None:
            ref = state.next_ref()
            answer = with_ref(answer, ref)
    elif passed_before and earlier is not None:
        standing = earlier.charges
    else:
        for trial in trials:
            for key, widths, amount in trial.charges:
                # Each counter counts once, however many checks look at it.
                known = charges.get(key)
                charges[key] = (widths if known is None else tuple({*known[0], *widths}), amount)
    settled = _new(
        Settled,
        (
            answer,
            REFUSED if strength == REFUSE else HELD if strength == HOLD else PASSED,
            by,
            reason,
            ref,
            " | ".join(would)[:800] if would else "",
            _detail(told, trials),
            _charges_text(charges) if charges else standing,
            mark,
        ),
    )
    # Counted only now that nothing can fail any more.
    if strength == REFUSE and passed_before and earlier is not None and earlier.charges:
        for scope, value, unit, amount in json.loads(earlier.charges):
            state.charge(CounterKey(scope, value, unit), (), -amount, earlier.at)
    for key, (widths, amount) in charges.items():
        state.charge(key, widths, amount, now)
    if testing and not banned:
        _tell_of_quotas(trials, strength != REFUSE, request, state)
    if watch is not None:
        if found.suspension is not None and ref is not None:
            watch.suspended(found, ref, request, now, state)
        elif strength != REFUSE and request.stage == END_OF_MESSAGE:
            watch.passed(request, recipients, found.familiar, now, state)
    for heard, outcome in recalled:
        if not banned and (strength != REFUSE or by == heard.check or heard.mode != ENFORCE):
            for fact_key, fact in outcome.remember.items():
                state.remember(fact_key, fact)
    return settled


def limits_of(quota: Quota, steering: Steering, account: Account, now: int) -> tuple[Limit, ...]:
    """The limits of a quota: its own, else those of the account's tier with its own ones over them."""
    tiers = quota.tiers
    if tiers is None:
        return quota.limits
    return steering.limits_of(quota.value, tiers.limits_in(account.tier_of(tiers, now)), now)


def recipients_of(request: Request, state: Siblings) -> tuple[str, ...]:
    """The folded recipients of the mail as far as they are known: at its end those that passed at RCPT."""
    if request.recipient or request.stage != END_OF_MESSAGE:
        return (request.recipient_key,) if request.recipient else ()
    newest = {s.recipient: s for s in state.siblings(request)}
    passed = [parsed_address(s.recipient)[0] for s in newest.values() if s.verdict != REFUSED]
    return tuple(dict.fromkeys(passed))


def _let_through(heard: Sequence[Heard]) -> bool:
    """Whether an allow ended the chain."""
    if not heard:
        return False
    _, mode, opinion, _, _ = heard[-1]
    return opinion is not None and opinion.final and mode == ENFORCE and opinion.answer is DUNNO


def _tell_of_quotas(trials: Sequence[Trials], passed: bool, request: Request, state: State) -> None:
    """Events of limits that are nearly used up, or are."""
    for trial in trials:
        if trial.heard.mode != ENFORCE:
            continue
        if passed:
            for near in trial.near:
                _tell_of_quota(f"quota-{NEAR}%", trial, near, near.used + near.amount, request, state)
        elif trial.worst is not None:
            _tell_of_quota("quota-100%", trial, trial.worst, trial.worst.used, request, state)


def _tell_of_quota(
    kind: str, trials: Trials, trial: Trial, used: int, request: Request, state: State
) -> None:
    limit = trial.limit
    facts = {
        "check": trials.heard.check,
        "scope": trial.key.scope,
        "used": used,
        "limit": trial.allowed,
        "unit": limit.unit,
        "window": limit.window,
        "client": request.client_address,
        "sender": request.sender,
    }
    state.tell(kind, trial.key.value, facts, once=limit.window)


def _would(check: str, answer: Answer) -> str:
    return f"{check}: {answer.verb} {fill_ref(answer.text, NO_REF)}"


def _first_new_header(
    request: Request, heard: Sequence[Heard], state: State
) -> tuple[Answer, str, str] | None:
    """The first header of the chain that was not prepended to this mail before, with its check and reason.

    One answer carries one header, and Postfix prepends for each recipient: the next one goes with the next recipient.
    """
    if request.stage == END_OF_MESSAGE:
        # Postfix ignores it there, with a warning (access(5)).
        return None
    sent = set()
    if request.instance:
        sent = {
            s.action.partition(":")[0] for s in state.siblings(request) if s.action.startswith("PREPEND ")
        }
    for check, mode, said, _, _ in heard:
        if said is not None and mode == ENFORCE and said.answer.strength == HEADER:
            if str(said.answer).partition(":")[0] not in sent:
                return said.answer, check, said.reason
    return None


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
        whole = 0 if _counted_before(request, quota, state) else 1
    elif quota.external is not None:
        if request.recipient:
            count = 0 if request.internal else count
        elif request.is_submission and (not request.sender_key or request.sender_domain in quota.external):
            seen = {s.recipient for s in state.siblings(request) if s.verdict != REFUSED}
            inside = sum(1 for recipient in seen if _is_internal(request, recipient, quota.external))
            # Postfix may have refused some of those that were asked about: of what is not known, assume the most.
            count = min(count, max(len(seen) - inside, count - inside))
        if not count:
            return {}
    return {"messages": whole, "recipients": count, "bytes": min(request.size * whole, MAX_AMOUNT)}


def _counted_before(request: Request, quota: Quota, state: State) -> bool:
    """Whether another recipient of this message was counted for the same counter, and is counted still."""
    newest = {s.recipient: s for s in state.siblings(request)}
    return any(
        (scope, value, unit.endswith("/external")) == (quota.scope, quota.value, quota.external is not None)
        for sibling in newest.values()
        if sibling.verdict != REFUSED and sibling.recipient != request.recipient and sibling.charges
        for scope, value, unit, _ in json.loads(sibling.charges)
    )


def _is_internal(request: Request, recipient: str, own: frozenset[str]) -> bool:
    """Whether ``request`` would be internal if ``recipient`` were its only one."""
    sender_is_own = not request.sender_key or request.sender_domain in own
    return request.is_submission and sender_is_own and domain_of(fold(recipient)) in own


def _try(
    heard: Heard,
    quota: Quota,
    limits: tuple[Limit, ...],
    request: Request,
    now: int,
    state: State,
    local_time: Callable[[int], str],
    testing: bool,
) -> Trials:
    """Test all limits of one quota check (with ``testing``), and say what it would count."""
    numbers: list[str] = []
    charges: list[tuple[CounterKey, tuple[int, ...], int]] = []
    near: list[Trial] = []
    worst: Trial | None = None
    twice = True
    amounts = _amounts(request, quota, state)
    scope, value, grants = quota.scope, quota.value, quota.grants
    for unit, name, of_unit, widths in counted(limits, quota.external is not None) if amounts else ():
        amount = amounts[unit]
        key = _new(CounterKey, (scope, value, name))
        if quota.counts and amount:
            charges.append((key, widths, amount))
        if not testing:
            continue
        counter = state.counter(key)
        every = counter.all
        granted = grants.get(unit, 0) if grants else 0
        begin = f'["{heard.check}","{scope}",{json_text(value)},"{name}",'
        for limit, width in of_unit:
            if every and width not in every:
                # A width that is new is filled from the others now, not anew at each refusal with a later time.
                state.charge(key, widths, 0, now)
                every = counter.all
            used = every[width].used(limit.window, now) if every else 0
            allowed = limit.amount + granted
            fits = used + amount <= allowed
            numbers.append(f"{begin}{limit.window},{allowed},{used},{amount},{'1' if fits else '0'}]")
            if not fits and amount:
                twice = twice and used + amount <= 2 * allowed
                if worst is None or (amount > allowed and not worst.alone):
                    worst = Trial(limit, allowed, key, used, amount)
            elif quota.counts and used * 100 < allowed * NEAR <= (used + amount) * 100:
                near.append(Trial(limit, allowed, key, used, amount))
    answer = _breach(quota, worst, twice, now, state, local_time) if worst is not None else None
    return _new(Trials, (heard, quota, numbers, charges, worst, answer, near))


def _breach(
    quota: Quota,
    worst: Trial,
    twice: bool,
    now: int,
    state: State,
    local_time: Callable[[int], str],
) -> Answer | None:
    if quota.on_breach == "hold" and not worst.alone:
        if twice:
            return make_answer("HOLD", "sending limit reached") if quota.counts else None
    unit = worst.limit.unit
    as_text = format_size if unit == "bytes" else str
    values = {
        "unit": "of mail" if unit == "bytes" else unit,
        "limit": as_text(worst.allowed),
        "window": spoken_window(worst.limit.window),
        "ref": "{ref}",
    }
    if worst.alone:
        # Never any room for it, so what the admin says about waiting would be wrong.
        text = fill(TOO_LARGE, {**values, "amount": as_text(worst.amount)})
        return make_answer("550", clip("5.7.1 " + text))
    counter = state.counter(worst.key)
    room_at = counter.room_at(worst.limit.window, now, worst.used + worst.amount - worst.allowed)
    values |= {
        "used": as_text(worst.used),
        "until": local_time(room_at),
        "user": escape(quota.value, 64),
    }
    text = fill(quota.text, values)
    if quota.on_breach == "reject":
        return make_answer("550", clip("5.7.1 " + text))
    return make_answer("450", clip("4.7.1 " + text))


def _reason(tried: Trials) -> str:
    worst = tried.worst
    if worst is None:
        return ""
    what = "more than the whole limit" if worst.alone else "limit reached"
    return (
        f"{what}: {worst.used}+{worst.amount} of {worst.allowed} {worst.limit.unit}"
        f" per {format_duration(worst.limit.window)}"
    )


def _charges_text(charges: dict[CounterKey, tuple[tuple[int, ...], int]]) -> str:
    """JSON: ``[[scope, value, unit, amount], ...]``."""
    parts = [
        f'["{key.scope}",{json_text(key.value)},"{key.unit}",{amount}]'
        for key, (_, amount) in charges.items()
    ]
    return "[" + ",".join(parts) + "]"


def _detail(heard: Sequence[Heard], tried: Sequence[Trials]) -> str:
    """The JSON that ``policyctl explain`` reads: each check's opinion and time, each limit's numbers.

    Put together by hand: it is made for each decision, and only few of its parts can need escaping.
    """
    checks = []
    for name, mode, opinion, micros, error in heard:
        reason = EMPTY
        if error:
            outcome, reason = "failed", json_text(error[:200])
        elif opinion is None:
            outcome = "-"
        else:
            answer, text, final, quota, _, _, _ = opinion
            outcome = "limits" if quota is not None else "final" if final else answer.verb
            if text:
                reason = json_text(text)
        checks.append(f'["{name}","{mode}","{outcome}",{micros},{reason}]')
    limits = ",".join([",".join(trial.numbers) for trial in tried if trial.numbers])
    return f'{{"checks":[{",".join(checks)}],"limits":[{limits}]}}'


def fill_ref(text: str, ref: str) -> str:
    """``text`` with its reference filled in."""
    return text.replace("{ref}", ref)


def with_ref(answer: Answer, ref: str) -> Answer:
    """A refusal that carries ``ref``: where its text says so, else at its end; a text that is too long gives way."""
    if "{ref}" in answer.text:
        text = clip(fill_ref(answer.text, ref))
        if ref in text:
            return Answer(answer.verb, text)
    tail = f" ref {ref}"
    text = answer.text.encode("utf-8", "replace")[: MAX_TEXT_BYTES - len(tail)].decode("utf-8", "ignore")
    return Answer(answer.verb, clip(text.rstrip() + tail))


def parse_action(action: str) -> Answer:
    """The answer that was written down as ``str(answer)``."""
    verb, _, text = action.partition(" ")
    return Answer(verb, text)
