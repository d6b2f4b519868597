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
from json.encoder import encode_basestring as json_text

from policyd.answer import DUNNO, HEADER, HOLD, PASS, REFUSE, Answer, fill_ref, parse_action, with_ref
from policyd.decision import DEADLINE, HELD, LATE, PASSED, REFUSED, REPEAT, Earlier, Settled
from policyd.detectors import BREACHED
from policyd.detectors import PASSED as PASSED_ON
from policyd.detectors import REFUSED as REFUSED_BY
from policyd.opinion import (
    ENFORCE,
    CounterKey,
    Heard,
    Proposal,
    Recalled,
)
from policyd.request import END_OF_MESSAGE, Request, parsed_address
from policyd.state import Siblings, State
from policyd.trial import NEAR, Trial, Trials, limits_of, reason_of, try_quota
from policyd.watch import NOTHING

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: Stands for the reference in what was never sent.
NO_REF = "-----"
EMPTY = '""'


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
            trials.append(try_quota(heard, quota, limits, request, now, state, local_time, testing))
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
                answer, by, reason, breached = verdict, trial.heard.check, reason_of(trial), True

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
