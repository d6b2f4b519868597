"""The front desk: every request answered once, in time, and the ledger following what was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd import desk as desk_module
from policyd.answer import DUNNO, REFUSE, Answer, make_answer
from policyd.decision import Decision, Operation
from policyd.decisionlog import DecisionLog
from policyd.desk import TICK, Asked, Case, Desk
from policyd.engine import Engine
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import Attributes, Request
from policyd.steering import Steering
from tests.fakes import SITE, FakeLedger, ask, ban, ban_rule, engine, finish, on_loop, quota_rule, rule, says

ATTRIBUTES = {
    "request": "smtpd_access_policy",
    "protocol_state": "END-OF-MESSAGE",
    "sender": "alice@example.org",
    "recipient": "bob@example.net",
    "recipient_count": "1",
    "size": "1000",
    "client_address": "192.0.2.7",
    "sasl_method": "plain",
    "sasl_username": "alice",
    "instance": "i1",
}
FROM_OUTSIDE = {**ATTRIBUTES, "sasl_method": "", "sasl_username": "", "sender": "x@example.net"}


class FakeTime:
    """Stands for the module ``time``: the test turns it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return int(self.now * 1e9)


class FakeLoop:
    """What the desk asks of the loop, with a clock that the test turns."""

    def __init__(self, time: FakeTime) -> None:
        self._time = time
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._later: list[tuple[float, Callable[..., object]]] = []

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        self._soon.append((call, args))

    def call_later(self, delay: float, call: Callable[..., object]) -> object:
        self._later.append((self._time.now + delay, call))
        return object()

    def create_task(self, coroutine: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(coroutine)

    def turn(self) -> None:
        """What was to be called soon."""
        soon, self._soon = self._soon, []
        for call, args in soon:
            call(*args)

    def pass_time(self, seconds: float) -> None:
        """Time passes, timers run."""
        self._time.now += seconds
        due = [entry for entry in self._later if entry[0] <= self._time.now]
        self._later = [entry for entry in self._later if entry[0] > self._time.now]
        for _, call in due:
            call()


class FakeWriter:
    """A writer over a ledger in memory, which decides when the test says so."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger
        self.queue: list[Operation] = []
        self.desk: Desk

    def submit(self, operation: Operation) -> None:
        self.queue.append(operation)

    def give_way(self) -> None:
        pass

    def decide(self) -> list[tuple[Operation, Decision | None]]:
        """Settle what is queued, and keep the decisions for :meth:`hand`."""
        handed: list[tuple[Operation, Decision | None]] = []
        queue, self.queue = self.queue, []
        for operation in queue:
            settled = self.ledger.decide(
                operation.request, operation.forced, operation.previous, operation.proposal
            )
            number = len(self.ledger.rows)
            decision = Decision(number, self.ledger.now, 0, operation.request, settled, "p0", 0)
            handed.append((operation, decision))
        return handed

    def run(self) -> None:
        """Settle and hand back until nothing is queued."""
        while self.queue:
            self.desk.deliver(self.decide())


class Sink:
    """Keeps the lines of the decision log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        self.lines += lines

    def reopen(self) -> None:
        pass

    def look(self) -> None:
        pass

    def close(self) -> None:
        pass


class Office:
    """A desk with everything around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rules: Any) -> None:
        self.time = FakeTime()
        monkeypatch.setattr(desk_module, "time", self.time)
        self.loop = FakeLoop(self.time)
        chain = engine(*rules)
        self.ledger = FakeLedger(chain)
        self.writer = FakeWriter(self.ledger)
        self.sink = Sink()
        self.looked = 0
        self.desk = Desk(
            self.loop,  # type: ignore[arg-type]
            self.writer,
            chain,
            SITE,
            DecisionLog([self.sink]),
            lambda: self.ledger.now,
            self._steering,
        )
        self.writer.desk = self.desk
        self.answers: list[Answer] = []

    def _steering(self) -> Steering:
        self.looked += 1
        return self.ledger.steering

    def take(self, attributes: dict[str, str] | None = None, **more: str) -> None:
        self.desk.take(
            [Asked(Attributes.of({**(attributes or ATTRIBUTES), **more}), "l", "", self.answers.append)]
        )

    def used(self) -> int:
        return self.ledger.used("messages/external")


QUOTA = (ban_rule(), quota_rule("2 messages per 1h"))


def test_a_request_is_answered_once_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the chain to the writer and back; never within the call that brought it."""
    office = Office(monkeypatch, *QUOTA)
    office.take()
    assert office.answers == []
    office.writer.run()
    assert office.answers == [DUNNO]
    assert office.desk.decision_log.flush()
    assert len(office.sink.lines) == 1
    assert not office.desk.waiting
    assert office.desk.answered == 1
    office.loop.pass_time(10)
    office.writer.run()
    assert office.answers == [DUNNO]


def test_the_stage_watch_is_told_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mail that was refused, by a check or by the deadline, no later stage comes, and none is missed."""
    office = Office(monkeypatch, *QUOTA)
    for number in range(4):
        office.take(instance=f"i{number}")
        office.writer.run()
    assert [answer == DUNNO for answer in office.answers] == [True, True, False, False]
    assert office.desk.stages.refusals == {"submission": 2}
    office.take(instance="late")
    office.loop.pass_time(10)
    assert office.desk.stages.refusals == {"submission": 3}


def test_steering_is_read_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests come in it, and anew in the next."""
    office = Office(monkeypatch, *QUOTA)
    for _ in range(5):
        office.take()
    assert office.looked == 1
    office.loop.turn()
    office.take()
    assert office.looked == 2


@pytest.mark.parametrize(
    ("attributes", "fail", "verb"),
    [
        (ATTRIBUTES, "defer", "451"),
        (ATTRIBUTES, "reject", "554"),
        (ATTRIBUTES, "dunno", "DUNNO"),
        (FROM_OUTSIDE, "dunno", "DUNNO"),
        (FROM_OUTSIDE, "defer", "451"),
    ],
)
def test_without_a_decision_the_answer_is_what_fail_says(
    monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str], fail: str, verb: str
) -> None:
    """For the direction of the request, with a reference of its own when it refuses."""
    office = Office(monkeypatch, *QUOTA)
    other = "reject" if fail != "reject" else "dunno"
    submission = attributes is ATTRIBUTES
    office.desk.fail = {"submission": fail if submission else other, "mx": other if submission else fail}
    office.take(attributes)
    (operation,) = office.writer.queue
    office.desk.deliver([(operation, None)])
    (answer,) = office.answers
    assert answer.verb == verb
    assert make_answer(*answer) == answer
    if answer.strength == REFUSE:
        assert len(answer.text.rpartition(" ref ")[2]) == 7


def test_a_known_ban_holds_although_no_decision_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the deadline nor a sick store lets a banned one pass, whatever fail says; and the reference finds its row."""
    office = Office(monkeypatch, *QUOTA)
    office.desk.fail = {"submission": "dunno", "mx": "dunno"}
    office.ledger.steering.put("ban", ban("user", "alice@example.org"))
    office.take()
    (operation,) = office.writer.queue
    office.desk.deliver([(operation, None)])
    office.writer.queue.clear()
    office.take(instance="i2")
    office.loop.pass_time(10)
    office.writer.run()
    for answer in office.answers:
        assert answer.verb == "550"
        assert answer.text.startswith(
            "5.7.1 Sending is not permitted for this login; contact postmaster. ref "
        )
        assert make_answer(*answer) == answer
    assert office.ledger.rows[-1][1].ref == office.answers[1].text[-7:]


def test_the_deadline_answers_before_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick ahead, once; what was answered is settled so: nothing is counted."""
    office = Office(monkeypatch, *QUOTA)
    office.take()
    elapsed = 0.0
    while not office.answers:
        office.loop.pass_time(TICK)
        elapsed += TICK
        assert elapsed <= office.desk.deadline
    assert office.answers[0].verb == "451"
    office.writer.run()
    assert len(office.answers) == 1
    assert office.used() == 0
    assert office.ledger.rows[-1][1].ref == office.answers[0].text[-7:]


def test_a_dunno_by_the_deadline_is_counted_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mail is through."""
    office = Office(monkeypatch, *QUOTA)
    office.desk.fail = {"submission": "dunno", "mx": "dunno"}
    office.take()
    office.loop.pass_time(10)
    assert office.answers == [DUNNO]
    office.writer.run()
    assert office.used() == 1
    assert office.ledger.rows[-1][1].mark == "late"


@pytest.mark.parametrize("instance", ["i1", ""])
def test_the_deadline_came_while_the_writer_decided(monkeypatch: pytest.MonkeyPatch, instance: str) -> None:
    """Decided to pass, answered with a deferral: the count is taken back, once."""
    office = Office(monkeypatch, *QUOTA)
    office.take(instance=instance)
    decided = office.writer.decide()
    office.loop.pass_time(10)
    assert office.used() == 1
    office.desk.deliver(decided)
    office.writer.run()
    assert (len(office.answers), office.used()) == (1, 0)
    assert office.ledger.rows[-1][1].ref == office.answers[0].text[-7:]


@pytest.mark.parametrize("instance", ["i1", ""])
def test_the_deadline_let_pass_while_the_writer_refused(
    monkeypatch: pytest.MonkeyPatch, instance: str
) -> None:
    """Refused for want of room, answered with DUNNO: counted late."""
    office = Office(monkeypatch, *QUOTA)
    office.desk.fail = {"submission": "dunno", "mx": "dunno"}
    for number in range(2):
        office.take(instance=f"x{number}")
    office.writer.run()
    office.take(instance=instance)
    decided = office.writer.decide()
    office.loop.pass_time(10)
    office.desk.deliver(decided)
    office.writer.run()
    assert (office.answers[-1], office.used()) == (DUNNO, 3)


def test_the_deadline_gave_the_same_answer_as_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to correct."""
    office = Office(monkeypatch, *QUOTA)
    office.desk.fail = {"submission": "dunno", "mx": "dunno"}
    office.take()
    decided = office.writer.decide()
    office.loop.pass_time(10)
    office.desk.deliver(decided)
    assert office.writer.queue == []
    assert office.used() == 1


steps = st.lists(
    st.tuples(
        st.sampled_from(("take", "decide", "hand", "pass", "none")),
        st.sampled_from(("i1", "i2", "")),
        st.booleans(),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_whatever_the_order_each_is_answered_once_and_counted_as_answered(
    steps: list[tuple[str, str, bool]],
) -> None:
    """Requests, batches, their return, deadlines: the counters hold the last word of each message."""
    with pytest.MonkeyPatch.context() as patch:
        office = Office(patch, quota_rule("3 messages per 1h"))
        answers: dict[int, list[Answer]] = {}
        instances: list[str] = []
        decided: list[tuple[Operation, Decision | None]] = []
        for kind, instance, dunno in steps:
            office.desk.fail = {"submission": "dunno" if dunno else "defer", "mx": "dunno"}
            if kind == "take":
                # Postfix asks again only after it was answered or gave up; the desk sees them in order.
                if instance and any(
                    known == instance and not answers[number] for number, known in enumerate(instances)
                ):
                    continue
                if instance and (office.writer.queue or decided):
                    continue
                number = len(instances)
                instances.append(instance)
                answers[number] = []
                office.desk.take(
                    [
                        Asked(
                            Attributes.of({**ATTRIBUTES, "instance": instance}),
                            "l",
                            "",
                            answers[number].append,
                        )
                    ]
                )
            elif kind == "decide" and not decided:
                decided = office.writer.decide()
            elif kind == "hand":
                office.desk.deliver(decided)
                decided = []
            elif kind == "pass":
                office.loop.pass_time(10)
        office.desk.deliver(decided)
        office.writer.run()
        assert all(len(given_answers) == 1 for given_answers in answers.values())
        last = {instance or number: answers[number][0] for number, instance in enumerate(instances)}
        assert office.used() == sum(answer.strength != REFUSE for answer in last.values())
        assert not office.desk.waiting


def test_one_reply_that_fails_does_not_keep_the_others_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once in the log; the rest of the batch is answered and logged."""
    office = Office(monkeypatch, *QUOTA)

    def fails(answer: Answer) -> None:
        raise RuntimeError("the session is broken")

    office.desk.take([Asked(Attributes.of({**ATTRIBUTES, "instance": "a"}), "l", "", fails)])
    office.take(instance="b")
    office.writer.run()
    assert office.answers == [DUNNO]
    assert office.desk.decision_log.flush()
    assert len(office.sink.lines) == 2
    assert "could not be handed over" in caplog.text


class BrokenEngine(Engine):
    """A chain with a bug of its own."""

    async def consult(self, *_: Any) -> Any:
        raise RuntimeError("a bug")


def test_a_chain_that_fails_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what fail says, on a later turn of the loop; the connection stays."""
    office = Office(monkeypatch)
    office.desk.engine = BrokenEngine([])
    office.take()
    assert office.answers == []
    office.loop.turn()
    assert office.answers[0].verb == "451"
    assert "a bug" in caplog.text
    office.writer.run()
    assert len(office.answers) == 1


def test_a_reload_reaches_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is looked up each time."""
    office = Office(monkeypatch, *QUOTA)
    refuses = engine(says(lambda request: Opinion(make_answer("550", "5.7.1 No; ref {ref}"), "no")))
    office.take()
    office.desk.engine = refuses
    office.take(instance="i2")
    office.writer.run()
    assert [answer.verb for answer in office.answers] == ["DUNNO", "550"]


# --- chains that wait ---------------------------------------------------------------------------------------------------


class Waits:
    """A check that waits for what the test gives it."""

    stages: frozenset[str] = frozenset()
    steadfast = False

    def __init__(self, stubborn: bool = False) -> None:
        self.futures: list[asyncio.Future[Opinion | None]] = []
        self.stubborn = stubborn
        self.cancelled = 0

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        future: asyncio.Future[Opinion | None] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.stubborn:
                return None
            raise


async def turns(office: Office) -> None:
    """Let tasks and callbacks come to rest."""
    for _ in range(5):
        office.loop.turn()
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)


def waiting(monkeypatch: pytest.MonkeyPatch, stubborn: bool = False) -> tuple[Office, Waits]:
    check = Waits(stubborn)
    return Office(monkeypatch, rule("dnsbl", check), *QUOTA), check


@on_loop
async def test_a_chain_that_waits_is_settled_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps nobody else waiting."""
    office, check = waiting(monkeypatch)
    office.take(instance="slow")
    assert office.writer.queue == []
    office.take(instance="quick")
    check.futures[1].set_result(None)
    await turns(office)
    office.writer.run()
    assert office.answers == [DUNNO]
    check.futures[0].set_result(Opinion(make_answer("554", "5.7.1 Listed; ref {ref}"), "listed"))
    await turns(office)
    office.writer.run()
    assert office.answers[1].verb == "554"


@on_loop
async def test_the_deadline_cancels_a_chain_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered, written down, and the chain is told to stop."""
    office, check = waiting(monkeypatch)
    office.take()
    await turns(office)
    office.loop.pass_time(10)
    await turns(office)
    assert (office.answers[0].verb, check.cancelled) == ("451", 1)
    office.writer.run()
    assert [row[1].verdict for row in office.ledger.rows] == ["refuse"]
    assert office.used() == 0


@on_loop
async def test_a_chain_that_ignores_its_end_is_settled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was deferred: nothing is counted, although the chain came to its end after all."""
    office, check = waiting(monkeypatch, stubborn=True)
    office.take()
    await turns(office)
    office.loop.pass_time(10)
    await turns(office)
    office.writer.run()
    assert check.cancelled == 1
    assert [answer.verb for answer in office.answers] == ["451"]
    assert office.used() == 0
    assert len(office.ledger.rows) == 1


@on_loop
async def test_a_waiting_chain_that_fails_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error outside of a check is the desk's to answer."""

    class Fails(Engine):
        async def consult(self, *_: Any) -> Any:
            await future
            raise RuntimeError("a late bug")

    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    office = Office(monkeypatch)
    office.desk.engine = Fails([])
    office.take()
    future.set_result(None)
    await turns(office)
    office.writer.run()
    assert [answer.verb for answer in office.answers] == ["451"]
    assert "a late bug" in caplog.text


def test_a_done_chain_after_the_deadline_submits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback of a task that was done when the deadline came."""
    office = Office(monkeypatch, *QUOTA)
    case = Case(office.desk, ask(), office.answers.append)
    proposal = finish(office.desk.engine.consult(case.request, 0, Steering()))

    class Done:
        def cancel(self) -> bool:
            return False

        def cancelled(self) -> bool:
            return False

        def exception(self) -> None:
            return None

        def result(self) -> Any:
            return proposal

    case.task = Done()  # type: ignore[assignment]
    case.overdue()
    case.chain_ended(Done())  # type: ignore[arg-type]
    assert len(office.writer.queue) == 1
    office.writer.run()
    assert office.used() == 0


def test_policyds_own_mail_passes_and_is_no_question_of_postfixs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert that Postfix asks about is not checked, counted or taken for traffic; who uses such a name later is a stranger."""
    office = Office(monkeypatch, ban_rule(), quota_rule("0 messages per 1h"))
    name = office.desk.own.begin("mx.example.org")
    office.take(helo_name=name)
    office.take(helo_name="policyd-alert-00000000000000000000000000000000.mx.example.org", instance="i2")
    office.writer.run()
    assert [str(answer)[:3] for answer in office.answers] == ["DUN", "550"]
    assert sum(office.desk.stages.seen.values()) == 1
    assert office.ledger.rows[0][1].by == "alerts"
    office.desk.own.end(name)
    office.take(helo_name=name, instance="i3")
    office.writer.run()
    assert office.answers[-1] is not DUNNO
