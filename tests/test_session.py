"""A session: bytes in, answers out, in order, one at a time, whatever the peer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import session as session_module
from policyd.answer import DUNNO, Answer
from policyd.desk import Asked
from policyd.request import Attributes
from policyd.session import HALF_REQUEST, IDLE, PolicyProtocol, Session
from policyd.wire import MAX_REQUEST


def request(number: int, **more: str) -> bytes:
    lines = {"request": "smtpd_access_policy", "instance": str(number), **more}
    return "".join(f"{name}={value}\n" for name, value in lines.items()).encode() + b"\n"


class FakeTransport:
    """Keeps what is written; a test may close the other end."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = 0
        self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the close"
        self.written += data

    def close(self) -> None:
        self.closed += 1

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.1", 25)

    @property
    def answers(self) -> list[str]:
        return self.written.decode().split("\n\n")[:-1]


class FakeDesk:
    """Takes requests, and answers when the test says so with the instance that was asked about."""

    def __init__(self) -> None:
        self.taken: list[tuple[Attributes, str, str]] = []
        self.waiting: list[tuple[str, Callable[[Answer], None]]] = []

    def ready(self, session: Session) -> None:
        asked = session.next_request()
        if asked is not None:
            self.take([asked])

    def take(self, asked: Sequence[Asked]) -> None:
        for attributes, label, direction, reply in asked:
            self.taken.append((attributes, label, direction))
            self.waiting.append((attributes.instance, reply))

    def answer(self) -> bool:
        if not self.waiting:
            return False
        instance, reply = self.waiting.pop(0)
        reply(Answer("450", f"4.7.1 {instance}"))
        return True

    def answer_all(self) -> None:
        while self.answer():
            pass


class Scene:
    """A session between a fake desk and a fake transport."""

    def __init__(self) -> None:
        self.desk = FakeDesk()
        self.transport = FakeTransport()
        self.session = Session(self.desk, self.transport, "label", "submission", "192.0.2.1")  # type: ignore[arg-type]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def expected(*numbers: int) -> list[str]:
    return [f"action=450 4.7.1 {number}" for number in numbers]


def test_a_request_is_answered(scene: Scene) -> None:
    """With the listener's label and direction."""
    scene.session.data_received(request(1))
    assert scene.session.busy
    assert scene.desk.taken[0][1:] == ("label", "submission")
    scene.desk.answer()
    assert not scene.session.busy
    assert scene.transport.answers == expected(1)


@given(st.integers(1, 6), st.lists(st.integers(1, 60), max_size=80), st.lists(st.booleans(), max_size=80))
def test_however_the_bytes_come_each_request_is_answered_once_in_order(
    count: int, cuts: list[int], answers: list[bool]
) -> None:
    """Pipelined, in pieces, answered late: one at a time."""
    scene = Scene()
    data = b"".join(request(number, sender="x" * number) for number in range(count))
    answering = iter(answers)
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        if piece:
            scene.session.data_received(piece)
        assert len(scene.desk.waiting) <= 1
        if next(answering, False):
            scene.desk.answer()
    scene.desk.answer_all()
    assert scene.transport.answers == expected(*range(count))
    assert not scene.transport.closed


@pytest.mark.parametrize(
    "garbage",
    [b"hello\n\n", b"\n", b"request=other\n\n", b"a\0b=c\n\n", b"x" * 9_000, b"GET / HTTP/1.0\r\n\r\n\n\n"],
)
def test_garbage_after_requests_answers_them_first_then_disconnects(
    scene: Scene, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer to it, one log line, a disconnect; nothing after it is looked at."""
    scene.session.data_received(request(1) + request(2) + garbage + request(3))
    scene.desk.answer_all()
    assert scene.transport.answers == expected(1, 2)
    assert scene.transport.closed == 1
    assert len(caplog.records) == 1
    assert caplog.messages[0].isprintable()
    scene.session.data_received(request(4))
    assert len(scene.desk.taken) == 2


def test_the_peer_has_said_all_and_is_still_answered(scene: Scene) -> None:
    """Half-closed with requests in hand: answered, then closed."""
    scene.session.data_received(request(1) + request(2))
    scene.session.ended()
    assert not scene.transport.closed
    scene.desk.answer_all()
    assert scene.transport.answers == expected(1, 2)
    assert scene.transport.closed == 1


def test_the_peer_left_in_the_middle_of_a_request(scene: Scene) -> None:
    """Half a request is none."""
    scene.session.data_received(request(1)[:-1])
    scene.session.ended()
    assert (scene.desk.taken, scene.transport.closed) == ([], 1)


def test_a_connection_that_is_lost_gets_nothing_more(scene: Scene) -> None:
    """What is being decided is decided; nothing is written and nothing taken up."""
    scene.session.data_received(request(1) + request(2))
    scene.session.lost()
    scene.desk.answer_all()
    assert scene.transport.written == b""
    assert len(scene.desk.taken) == 1
    assert not scene.transport.closed


def test_the_end_of_the_daemon_answers_what_was_asked(scene: Scene) -> None:
    """Idle sessions close at once, busy ones when they are done; nothing new is read."""
    scene.session.data_received(request(1))
    scene.session.finish()
    assert scene.transport.paused
    assert not scene.transport.closed
    scene.desk.answer_all()
    assert scene.transport.answers == expected(1)
    assert scene.transport.closed == 1
    idle = Scene()
    idle.session.finish()
    idle.session.finish()
    assert idle.transport.closed == 1


def test_a_peer_that_asks_faster_than_it_is_answered_is_slowed_down(scene: Scene) -> None:
    """Reading pauses when a request's worth is waiting, and goes on when it was worked off; nothing is lost."""
    count = 0
    while not scene.transport.paused:
        scene.session.data_received(request(count, sender="x" * 1000))
        count += 1
        assert count * 1000 <= MAX_REQUEST + 2000
    scene.session.data_received(request(count, sender="y" * 1000))
    count += 1
    scene.desk.answer_all()
    assert not scene.transport.paused
    assert scene.transport.answers == expected(*range(count))


def test_a_peer_that_takes_no_answers_gets_no_further_request_decided(scene: Scene) -> None:
    """Until it does."""
    scene.session.data_received(request(1) + request(2) + request(3))
    scene.session.writable(False)
    scene.desk.answer()
    assert len(scene.desk.taken) == 1
    scene.session.writable(True)
    scene.desk.answer_all()
    assert scene.transport.answers == expected(1, 2, 3)


class Now:
    """The module ``time``, turned by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_half_a_request_gets_its_time_and_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes of it do not prolong it; Postfix's idle time is never cut short."""
    now = Now()
    monkeypatch.setattr(session_module, "time", now)
    scene.session.data_received(request(1))
    scene.desk.answer()
    now.now += 1_200
    scene.session.check_time(now.now)
    assert not scene.transport.closed
    for octet in request(2)[:20]:
        scene.session.data_received(bytes([octet]))
        now.now += HALF_REQUEST / 20
        scene.session.check_time(now.now)
        assert not scene.transport.closed
    scene.session.data_received(b"x")
    now.now += 1
    scene.session.check_time(now.now)
    assert scene.transport.closed == 1


def test_a_session_nobody_uses_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long after Postfix would have ended it; a slow decision is not idleness."""
    now = Now()
    monkeypatch.setattr(session_module, "time", now)
    scene.session.data_received(request(1))
    now.now += 2 * IDLE
    scene.session.check_time(now.now)
    assert not scene.transport.closed
    scene.desk.answer()
    scene.session.check_time(now.now + 1_200)
    assert not scene.transport.closed
    scene.session.check_time(now.now + IDLE + 1)
    scene.session.check_time(now.now + IDLE + 2)
    assert scene.transport.closed == 1


def test_many_requests_at_once_do_not_pile_up_on_the_stack(scene: Scene) -> None:
    """Each answer takes up the next; 5,000 of them are no recursion when the desk answers later."""
    scene.session.data_received(b"".join(request(number) for number in range(5_000)))
    scene.desk.answer_all()
    assert len(scene.transport.answers) == 5_000


# --- on a transport of the loop ---------------------------------------------------------------------------------------


def protocol(admit: bool = True) -> tuple[PolicyProtocol, FakeTransport, FakeDesk, set[Session], list[Any]]:
    desk, transport, sessions, peers = FakeDesk(), FakeTransport(), set[Session](), list[Any]()

    def make(given_transport: Any, peer: Any) -> Session | None:
        peers.append(peer)
        return Session(desk, given_transport, "l", "", str(peer)) if admit else None  # type: ignore[arg-type]

    made = PolicyProtocol(make, sessions)
    made.connection_made(transport)  # type: ignore[arg-type]
    return made, transport, desk, sessions, peers


def test_a_connection_is_a_session_for_as_long_as_it_lives() -> None:
    """With the peer's address; flow control reaches it."""
    made, transport, desk, sessions, peers = protocol()
    assert (len(sessions), peers) == (1, [("192.0.2.1", 25)])
    made.data_received(request(1) + request(2))
    made.pause_writing()
    desk.answer()
    assert not desk.waiting
    made.resume_writing()
    assert made.eof_received() is True
    desk.answer_all()
    assert transport.answers == expected(1, 2)
    assert transport.closed == 1
    made.connection_lost(None)
    assert not sessions


def test_who_is_not_let_in_is_closed() -> None:
    """And whatever it sends is nobody's."""
    made, transport, desk, sessions, _ = protocol(admit=False)
    assert transport.closed == 1
    made.data_received(request(1))
    made.pause_writing()
    made.resume_writing()
    assert made.eof_received() is False
    made.connection_lost(None)
    assert not desk.taken
    assert not sessions


def test_dunno_on_the_wire(scene: Scene) -> None:
    """An action without text."""
    scene.session.data_received(request(1))
    scene.desk.waiting[0][1](DUNNO)
    assert scene.transport.written == b"action=DUNNO\n\n"
