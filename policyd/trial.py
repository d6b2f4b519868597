"""Whether a mail fits its limits: what each quota check tests, what it would count, and what it answers.

Pure: it reads the counters of a :class:`policyd.state.State` and counts nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from json.encoder import encode_basestring as json_text
from typing import NamedTuple

from policyd.accounts import Account
from policyd.answer import Answer, clip, escape, make_answer
from policyd.decision import REFUSED
from policyd.match import domain_of, fold
from policyd.opinion import CounterKey, Heard, Quota
from policyd.request import RCPT, Request
from policyd.settings import fill
from policyd.state import State
from policyd.steering import Steering
from policyd.units import MAX_AMOUNT, Limit, format_duration, format_size, spoken_window
from policyd.window import slot_width

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: The admin may want to hear of an account that has used so much of a limit, in per cent.
NEAR = 80
#: What is said to a message that by itself is more than a limit.
TOO_LARGE = (
    "Message too large for the sending limit; {amount} of at most {limit} {unit} per {window}. ref {ref}"
)


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


def limits_of(quota: Quota, steering: Steering, account: Account, now: int) -> tuple[Limit, ...]:
    """The limits of a quota: its own, else those of the account's tier with its own ones over them."""
    tiers = quota.tiers
    if tiers is None:
        return quota.limits
    return steering.limits_of(quota.value, tiers.limits_in(account.tier_of(tiers, now)), now)


def try_quota(
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


def reason_of(tried: Trials) -> str:
    """The numbers of the limit that the mail does not fit, in words; empty when it fits."""
    worst = tried.worst
    if worst is None:
        return ""
    what = "more than the whole limit" if worst.alone else "limit reached"
    return (
        f"{what}: {worst.used}+{worst.amount} of {worst.allowed} {worst.limit.unit}"
        f" per {format_duration(worst.limit.window)}"
    )
