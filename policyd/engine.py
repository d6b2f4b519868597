"""The chain: each check in the order of the configuration, their opinions, and the strongest answer.

The engine knows no socket, no store and no clock: the ledger time, the steering data and the stopwatch are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from policyd.answer import DUNNO, HEADER, PASS, REFUSE, Answer
from policyd.checks import Check
from policyd.condition import Condition
from policyd.inquiry import Inquiry
from policyd.opinion import ENFORCE, OFF, SHADOW, Heard, Opinion, Proposal
from policyd.request import END_OF_MESSAGE, STAGES, Request
from policyd.steering import EVERY_CHECK, Steering
from policyd.watch import Watch

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: What is answered for a check that failed and says ``on_error = "defer"``.
FAILED = Answer("451", "4.3.0 Policy check failed, try again later; ref {ref}")


class Rule(NamedTuple):
    """A check in its place in the chain."""

    name: str
    use: str
    direction: str
    mode: str
    on_error: str
    check: Check
    #: It is asked only if one of these holds of what the checks before it found; empty: always.
    when: tuple[Condition, ...] = ()


class Engine:
    """Asks the rules, in order."""

    def __init__(
        self,
        rules: Sequence[Rule],
        policy: str = "",
        stopwatch: Callable[[], int] = lambda: 0,
        report: Callable[[str, Exception], None] = lambda name, error: None,
        watch: Watch | None = None,
    ) -> None:
        """
        :param policy: the version of the policy, a digest, kept with each decision.
        :param stopwatch: nanoseconds since some start, for the log only.
        :param report: told of each failure of a check.
        :param watch: the detectors, for settle to ask.
        """
        self.rules = tuple(rules)
        self.policy = policy
        self.watch = watch if watch is not None and watch.active else None
        self._stopwatch = stopwatch
        self._report = report
        self._chains: dict[tuple[str, str], tuple[Rule, ...]] = {}

    def chain(self, direction: str, stage: str) -> tuple[Rule, ...]:
        """The rules that are for ``direction`` and asked at ``stage``."""
        key = (direction, stage)
        chain = self._chains.get(key)
        if chain is None:
            chain = tuple(
                rule
                for rule in self.rules
                if rule.direction in ("any", direction)
                and (not rule.check.stages or stage in rule.check.stages)
            )
            # A hostile peer may invent stages without end; they must neither grow this nor crowd out the real ones.
            if stage in STAGES:
                self._chains[key] = chain
        return chain

    async def consult(
        self, request: Request, now: int, steering: Steering, due: float = math.inf
    ) -> Proposal:
        """The opinions of the chain on ``request`` at ledger time ``now``, for settle to decide on.

        :param due: when a check that waits has to go on with what it knows (``time.monotonic()``, s).
        """
        inquiry = Inquiry(due)
        heard: list[Heard] = []
        strongest, by, reason = DUNNO, "", ""
        paused = steering.mode_of(EVERY_CHECK, now) if steering.modes else ""
        stopwatch = self._stopwatch
        before = stopwatch()
        for rule in self.chain(request.direction, request.stage):
            mode = effective_mode(rule, paused, steering, now) if steering.modes else rule.mode
            if mode == OFF:
                continue
            opinion: Opinion | None
            if rule.when and not any(condition.holds(inquiry.findings) for condition in rule.when):
                continue
            error = ""
            try:
                opinion = await rule.check.check(request, now, steering, inquiry)
                answer = DUNNO if opinion is None else opinion.answer
                strength = PASS if answer is DUNNO else answer.strength
            # One check's bug or trouble must not stop the mail.
            except Exception as failure:  # noqa: BLE001
                self._report(rule.name, failure)
                error = f"{type(failure).__name__}: {failure}"
                opinion = Opinion(FAILED, "failed") if rule.on_error == "defer" else None
                answer, strength = (DUNNO, PASS) if opinion is None else (FAILED, REFUSE)
            after = stopwatch()
            heard.append(_new(Heard, (rule.name, mode, opinion, (after - before) // 1000, error)))
            before = after
            if opinion is not None and opinion.finding is not None:
                inquiry.findings[rule.name] = opinion.finding
            if opinion is None or mode != ENFORCE or (answer is DUNNO and not opinion.final):
                continue
            if strength > strongest.strength:
                # Postfix ignores a header at END-OF-MESSAGE, with a warning (access(5)).
                if strength != HEADER or request.stage != END_OF_MESSAGE:
                    strongest, by, reason = answer, rule.name, opinion.reason
            if opinion.final:
                if not by:
                    by, reason = rule.name, opinion.reason
                break
            if strongest.strength == REFUSE:
                break
        return Proposal(tuple(heard), strongest, by, reason, self.policy, self.watch)


def effective_mode(rule: Rule, paused: str, steering: Steering, now: int) -> str:
    """The rule's mode: the configured one, the one set by the admin over it, shadow while everything is paused."""
    mode = steering.mode_of(rule.name, now) or rule.mode
    if paused and mode == ENFORCE and not rule.check.steadfast:
        return SHADOW
    return mode
