"""The chain: order, ends, modes, failures. Coroutines are driven by hand: what never waits needs no loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from policyd.answer import DUNNO, Answer, make_answer
from policyd.engine import FAILED, Engine, Rule, effective_mode
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion, Proposal, Quota
from policyd.request import STAGES, Request, Site
from policyd.steering import EVERY_CHECK, CheckMode, Steering
from policyd.units import HOUR, Limit

REJECT = make_answer("550", "5.7.1 no")
DEFER = make_answer("450", "4.7.1 later")
HELD = make_answer("HOLD", "wait")
FIRST_HEADER = make_answer("PREPEND", "X-First: 1")
SECOND_HEADER = make_answer("PREPEND", "X-Second: 2")
NOBODY = Steering()


class Scripted:
    """A check that says what the test wrote down, and remembers that it was asked."""

    def __init__(
        self, says: Opinion | Exception | object | None, stages: frozenset[str], steadfast: bool
    ) -> None:
        self.says = says
        self.stages = stages
        self.steadfast = steadfast
        self.asked: list[tuple[Request, int, Steering]] = []

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        self.asked.append((request, now, steering))
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[return-value]


def rule(
    name: str,
    says: Opinion | Answer | Exception | object | None = None,
    *,
    direction: str = "any",
    mode: str = "enforce",
    on_error: str = "skip",
    stages: frozenset[str] = frozenset(),
    steadfast: bool = False,
) -> Rule:
    if isinstance(says, Answer):
        says = Opinion(says, f"{name} says so")
    return Rule(name, name, direction, mode, on_error, Scripted(says, stages, steadfast))  # type: ignore[arg-type]


def asked(one: Rule) -> int:
    assert isinstance(one.check, Scripted)
    return len(one.check.asked)


def request(stage: str = "RCPT", **attributes: str) -> Request:
    return Site().request({"protocol_state": stage, **attributes})


def drive(coroutine: Any) -> Any:
    """Run a coroutine that never waits, as the server does."""
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    return stop.value.value


def consult(*rules: Rule, of: Request | None = None, now: int = 5, steering: Steering = NOBODY) -> Proposal:
    proposal = drive(Engine(rules, "policy-1").consult(of or request(), now, steering))
    assert isinstance(proposal, Proposal)
    return proposal


def outcome(proposal: Proposal) -> tuple[Answer, str, str]:
    return proposal.answer, proposal.check, proposal.reason


def modes(**set_modes: str) -> Steering:
    steering = Steering()
    for name, mode in set_modes.items():
        steering.put("check_mode", CheckMode(EVERY_CHECK if name == "every" else name, mode, "", "", 1, 100))
    return steering


# --- order and ends -----------------------------------------------------------------------------------------------


def test_an_empty_chain_says_dunno() -> None:
    """No rules, no opinion, no check to name."""
    assert consult() == Proposal((), DUNNO, "", "", "policy-1")


def test_rules_are_asked_in_order_with_what_was_handed_in() -> None:
    """The request, the ledger time and the steering data, as they came."""
    rules = [rule(name) for name in "abc"]
    one, steering = request(), Steering()
    proposal = consult(*rules, of=one, now=77, steering=steering)
    assert [heard.check for heard in proposal.heard] == ["a", "b", "c"]
    for each in rules:
        assert isinstance(each.check, Scripted)
        assert each.check.asked == [(one, 77, steering)]
    assert outcome(proposal) == (DUNNO, "", "")


def test_a_refusal_ends_the_chain() -> None:
    """What comes after is not asked: it would cost a look-up and change nothing."""
    after = rule("after", REJECT)
    proposal = consult(rule("before"), rule("refuser", DEFER), after)
    assert outcome(proposal) == (DEFER, "refuser", "refuser says so")
    assert [heard.check for heard in proposal.heard] == ["before", "refuser"]
    assert asked(after) == 0


def test_a_final_opinion_ends_the_chain_and_says_dunno() -> None:
    """An allow-list hit: the check is named as the one that decided."""
    after = rule("after", REJECT)
    proposal = consult(rule("allow", Opinion(reason="allowed client", final=True)), after)
    assert outcome(proposal) == (DUNNO, "allow", "allowed client")
    assert asked(after) == 0


def test_a_final_opinion_keeps_what_was_said_before_it() -> None:
    """A header given earlier stays, and stays its check's."""
    proposal = consult(rule("marker", FIRST_HEADER), rule("allow", Opinion(reason="known", final=True)))
    assert outcome(proposal) == (FIRST_HEADER, "marker", "marker says so")


@pytest.mark.parametrize(
    ("answers", "strongest"),
    [
        ([FIRST_HEADER, HELD, REJECT], REJECT),
        ([HELD, FIRST_HEADER], HELD),
        ([FIRST_HEADER, HELD], HELD),
        ([FIRST_HEADER, SECOND_HEADER], FIRST_HEADER),
        ([DUNNO, FIRST_HEADER], FIRST_HEADER),
        ([Answer("DUNNO"), DUNNO], DUNNO),
        ([HELD, DEFER], DEFER),
    ],
)
def test_the_strongest_answer_wins_and_the_first_of_equals(answers: list[Answer], strongest: Answer) -> None:
    """A refusal beats HOLD beats a header beats DUNNO; weaker ones do not end the chain."""
    proposal = consult(*(rule(f"check{number}", answer) for number, answer in enumerate(answers)))
    assert proposal.answer == strongest
    assert len(proposal.heard) == len(answers)
    if strongest != DUNNO:
        assert proposal.check == f"check{answers.index(strongest)}"


def test_headers_are_not_given_at_end_of_message() -> None:
    """Postfix ignores them there, with a warning; a hold is given."""
    at_end = request("END-OF-MESSAGE")
    assert outcome(consult(rule("marker", FIRST_HEADER), of=at_end)) == (DUNNO, "", "")
    assert outcome(consult(rule("marker", FIRST_HEADER), rule("holder", HELD), of=at_end))[0] == HELD
    for stage in ("RCPT", "DATA"):
        assert consult(rule("marker", FIRST_HEADER), of=request(stage)).answer == FIRST_HEADER


def test_intents_reach_settle_untouched() -> None:
    """The engine decides nothing about limits: it hands them on."""
    quota = Quota("user", "alice", None, (Limit(1, "messages", HOUR),), {}, True, "defer", "text")
    opinion = Opinion(quota=quota)
    proposal = consult(rule("quota", opinion), rule("other"))
    assert proposal.heard[0].opinion is opinion
    assert proposal.heard[1].opinion is None
    assert outcome(proposal) == (DUNNO, "", "")


# --- directions and stages ----------------------------------------------------------------------------------------


def test_rules_are_for_a_direction_and_for_stages() -> None:
    """Who is not concerned is not asked and not heard."""
    rules = [
        rule("all"),
        rule("sub", direction="submission"),
        rule("mx", direction="mx"),
        rule("rcpt", stages=frozenset({"RCPT"})),
        rule("end", stages=frozenset({"END-OF-MESSAGE"}), direction="mx"),
    ]

    def heard(stage: str, context: str) -> list[str]:
        proposal = consult(*rules, of=request(stage, policy_context=context))
        return [one.check for one in proposal.heard]

    assert heard("RCPT", "submission") == ["all", "sub", "rcpt"]
    assert heard("RCPT", "") == ["all", "mx", "rcpt"]
    assert heard("END-OF-MESSAGE", "") == ["all", "mx", "end"]
    assert heard("END-OF-MESSAGE", "submission") == ["all", "sub"]
    assert heard("NEW-STAGE", "") == ["all", "mx"]


def test_invented_stages_take_no_memory_and_no_speed() -> None:
    """A hostile peer names a million stages: nothing is kept of them, the real ones are still remembered."""
    engine = Engine([rule("all"), rule("rcpt", stages=frozenset({"RCPT"}))])
    for number in range(1_000):
        assert len(engine.chain("mx", f"STAGE-{number}")) == 1
    for stage in STAGES:
        for direction in ("mx", "submission"):
            chain = engine.chain(direction, stage)
            assert engine.chain(direction, stage) is chain
            assert len(chain) == (2 if stage == "RCPT" else 1)
    assert len(engine._chains) == 2 * len(STAGES)


# --- modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", [REJECT, HELD, FIRST_HEADER, Opinion(reason="known", final=True)])
def test_shadow_is_heard_and_changes_nothing(says: Answer | Opinion) -> None:
    """It ends no chain, gives no answer, names no check; settle hears what it would have said."""
    after = rule("after", DEFER)
    proposal = consult(rule("quiet", says, mode="shadow"), after)
    assert outcome(proposal) == (DEFER, "after", "after says so")
    assert asked(after) == 1
    heard = proposal.heard[0]
    assert (heard.check, heard.mode) == ("quiet", "shadow")
    assert heard.opinion is not None
    assert heard.opinion.answer == (says if isinstance(says, Answer) else DUNNO)
    assert outcome(consult(rule("quiet", says, mode="shadow"))) == (DUNNO, "", "")


def test_off_is_not_asked() -> None:
    """Neither by the configuration nor by the admin at night."""
    quiet, silenced, loud = (
        rule("quiet", REJECT, mode="off"),
        rule("silenced", REJECT),
        rule("loud", DEFER, mode="off"),
    )
    proposal = consult(quiet, silenced, loud, steering=modes(silenced="off", loud="enforce"))
    assert outcome(proposal)[:2] == (DEFER, "loud")
    assert (asked(quiet), asked(silenced), asked(loud)) == (0, 0, 1)
    assert len(proposal.heard) == 1


def test_a_set_mode_ends_at_its_millisecond() -> None:
    """Then the configured one holds again."""
    steering = modes(refuser="shadow")
    assert consult(rule("refuser", REJECT), now=99, steering=steering).answer == DUNNO
    assert consult(rule("refuser", REJECT), now=100, steering=steering).answer == REJECT


def test_pause_puts_everything_in_shadow_but_what_is_steadfast() -> None:
    """Bans stay; a quota is only recorded."""
    steering = modes(every="shadow")
    proposal = consult(rule("quota", REJECT), rule("bans", DEFER, steadfast=True), steering=steering, now=99)
    assert outcome(proposal)[:2] == (DEFER, "bans")
    assert [(heard.check, heard.mode) for heard in proposal.heard] == [
        ("quota", "shadow"),
        ("bans", "enforce"),
    ]
    assert consult(rule("quota", REJECT), steering=steering, now=100).answer == REJECT


@pytest.mark.parametrize(
    ("configured", "own", "paused", "steadfast", "mode"),
    [
        ("enforce", "", "", False, "enforce"),
        ("shadow", "", "", False, "shadow"),
        ("off", "", "", False, "off"),
        ("enforce", "shadow", "", False, "shadow"),
        ("shadow", "enforce", "", False, "enforce"),
        ("off", "enforce", "", False, "enforce"),
        ("enforce", "off", "", True, "off"),
        ("enforce", "", "shadow", False, "shadow"),
        ("enforce", "enforce", "shadow", False, "shadow"),
        ("off", "", "shadow", False, "off"),
        ("shadow", "", "shadow", False, "shadow"),
        ("enforce", "", "shadow", True, "enforce"),
        ("enforce", "shadow", "shadow", True, "shadow"),
    ],
)
def test_the_effective_mode(configured: str, own: str, paused: str, steadfast: bool, mode: str) -> None:
    """Configured, the admin's over it, shadow while paused: pause never makes anything stricter."""
    steering = modes(check=own) if own else NOBODY
    assert effective_mode(rule("check", mode=configured, steadfast=steadfast), paused, steering, 5) == mode


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_failing_check_is_skipped_reported_and_the_chain_goes_on() -> None:
    """``on_error = "skip"``: one check's trouble does not stop the mail."""
    reported: list[tuple[str, Exception]] = []
    trouble = RuntimeError("broken")
    engine = Engine(
        [rule("bad", trouble), rule("good", DEFER)], report=lambda name, error: reported.append((name, error))
    )
    proposal = drive(engine.consult(request(), 5, NOBODY))
    assert outcome(proposal)[:2] == (DEFER, "good")
    assert reported == [("bad", trouble)]
    assert proposal.heard[0].opinion is None
    assert proposal.heard[0].error == "RuntimeError: broken"
    assert proposal.heard[1].error == ""


def test_a_failing_check_may_defer() -> None:
    """``on_error = "defer"``: its failure is an answer of its own, within the grammar."""
    after = rule("after")
    proposal = consult(rule("bad", OSError("no disk"), on_error="defer"), after)
    assert outcome(proposal) == (FAILED, "bad", "failed")
    assert asked(after) == 0
    assert make_answer(*FAILED) == FAILED
    assert FAILED.verb == "451"


def test_a_failing_check_in_shadow_defers_nobody() -> None:
    """What it would have done is heard."""
    proposal = consult(rule("bad", OSError("x"), on_error="defer", mode="shadow"), rule("after", REJECT))
    assert proposal.answer == REJECT
    assert proposal.heard[0].opinion == Opinion(FAILED, "failed")
    assert (
        consult(rule("bad", OSError("x"), on_error="defer"), steering=modes(every="shadow")).answer == DUNNO
    )


@pytest.mark.parametrize("nonsense", ["REJECT", 5, ("550", "5.7.1 no")])
def test_a_check_that_returns_nonsense_has_failed(nonsense: object) -> None:
    """A check from elsewhere may be wrong about the contract: that is its failure, not the mail's."""
    proposal = consult(rule("odd", nonsense), rule("good", DEFER))
    assert outcome(proposal)[:2] == (DEFER, "good")
    assert proposal.heard[0].error.startswith("AttributeError")
    assert proposal.heard[0].opinion is None


class Interrupted(BaseException):
    """Stands for what ends the process or cancels a task."""


def test_what_is_no_error_of_a_check_is_not_swallowed() -> None:
    """Cancellation at the deadline reaches the one who waits."""

    class Stops(Scripted):
        async def check(
            self, request: Request, now: int, steering: Steering, inquiry: Inquiry
        ) -> Opinion | None:
            raise Interrupted

    stopping = Rule("stop", "stop", "any", "enforce", "skip", Stops(None, frozenset(), False))  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        Engine([stopping]).consult(request(), 5, NOBODY).send(None)


# --- driving ------------------------------------------------------------------------------------------------------


class Pause:
    """What a check waits for: one suspension, like a future."""

    def __await__(self) -> Generator[str, str, str]:
        return (yield "waiting")


def test_a_chain_that_waits_goes_on_where_it_stopped() -> None:
    """Only then does the server need a task."""

    class Waits(Scripted):
        async def check(
            self, request: Request, now: int, steering: Steering, inquiry: Inquiry
        ) -> Opinion | None:
            return Opinion(DEFER, await Pause())

    waiting = Rule("waits", "waits", "any", "enforce", "skip", Waits(None, frozenset(), False))  # type: ignore[arg-type]
    coroutine = Engine([rule("before"), waiting, rule("after")]).consult(request(), 5, NOBODY)
    assert coroutine.send(None) == "waiting"  # type: ignore[comparison-overlap]
    with pytest.raises(StopIteration) as stop:
        coroutine.send("the answer came")  # type: ignore[arg-type]
    assert outcome(stop.value.value) == (DEFER, "waits", "the answer came")


def test_each_check_is_timed_with_the_watch_that_was_handed_in() -> None:
    """Nanoseconds in, whole microseconds in the log, each check its own."""
    ticks = iter([1_000_000, 1_005_999, 3_000_000])
    engine = Engine([rule("quick"), rule("slow")], stopwatch=lambda: next(ticks))
    proposal = drive(engine.consult(request(), 5, NOBODY))
    assert [heard.micros for heard in proposal.heard] == [5, 1_994]
