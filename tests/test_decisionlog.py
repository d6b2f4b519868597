"""The decision log: a decision is one line whatever a sender sends, and a sink in trouble delays nobody."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import decisionlog
from policyd.answer import DUNNO, make_answer
from policyd.decision import Decision, Settled
from policyd.decisionlog import DecisionLog, FileSink, SyslogSink, json_line, open_sink, text_line
from policyd.request import Request
from tests.fakes import ask, end_of, from_outside

WALL = 1_800_000_000_123


def decision(request: Request | None = None, refused: bool = False, number: int = 7) -> Decision:
    answer = make_answer("450", "4.7.1 Sending limit reached. ref 7F3K2") if refused else DUNNO
    settled = Settled(
        answer,
        "refuse" if refused else "pass",
        "quota" if refused else "",
        "limit reached: 5+1 of 5 messages per 1h" if refused else "",
        "7F3K2" if refused else None,
        "later: 550 no" if not refused else "",
        '{"checks":[],"limits":[]}',
        "",
        "repeat memory" if refused else "",
    )
    return Decision(number, 1, WALL, request or ask(instance="i", queue_id="q"), settled, "p0", 42)


def test_a_line_of_text() -> None:
    """Everything the admin looks for, in a fixed order."""
    assert text_line(decision(refused=True)) == (
        "2027-01-15T08:00:00.123Z id=7 verdict=refuse check=quota ref=7F3K2 stage=END-OF-MESSAGE instance=i queue_id=q "
        "user=alice@example.org client=192.0.2.7 sender=<alice@example.org> recipient=<bob@example.net> rcpts=1 size=1000 "
        'action="450 4.7.1 Sending limit reached. ref 7F3K2" reason="limit reached: 5+1 of 5 messages per 1h" '
        'mark="repeat memory" policy=p0 us=42'
    )


def test_what_is_absent_is_left_out() -> None:
    """And the null sender is seen."""
    line = text_line(decision(end_of("", 3, sender="", queue_id="", sasl_username="", sasl_method="")))
    assert "instance=" not in line
    assert "queue_id=" not in line
    assert "user=" not in line
    assert "recipient=" not in line
    assert "sender=<> rcpts=3" in line
    assert 'would="later: 550 no"' in line


def test_a_line_of_json() -> None:
    """The same and more, for programs."""
    line = json.loads(json_line(decision(from_outside(), refused=True)))
    assert line["ref"] == "7F3K2"
    assert line["direction"] == "mx"
    assert line["action"].startswith("450 4.7.1 ")
    assert line["detail"] == {"checks": [], "limits": []}
    assert line["us"] == 42


hostile = st.dictionaries(
    st.sampled_from(
        (
            "sender",
            "recipient",
            "sasl_username",
            "instance",
            "queue_id",
            "client_address",
            "client_name",
            "helo_name",
            "protocol_state",
            "policy_context",
        )
    ),
    st.text(st.characters(blacklist_categories=("Cs",)), max_size=40)
    | st.sampled_from(
        ("a b", 'a"b', "a\\", "<>", "> verdict=pass ref=X", "a=b", "\r\n", "\x1b[2J", "x" * 600)
    ),
)


@given(hostile)
def test_whatever_was_sent_a_decision_is_one_printable_line_that_reads_back(
    attributes: dict[str, str],
) -> None:
    """No line break, no control, no forged field: split like a shell would, each key comes once and at its place."""
    request = ask(**attributes)
    line = text_line(decision(request, refused=True))
    assert line.isascii()
    assert line.isprintable()
    words = shlex.split(line)
    keys = [word.partition("=")[0] for word in words[1:]]
    assert len(keys) == len(set(keys))
    assert set(keys) <= {
        "id",
        "verdict",
        "check",
        "stage",
        "ref",
        "instance",
        "queue_id",
        "user",
        "client",
        "sender",
        "recipient",
        "rcpts",
        "size",
        "action",
        "reason",
        "mark",
        "policy",
        "us",
    }
    fields = dict(word.split("=", 1) for word in words[1:])
    assert fields["verdict"] == "refuse"
    assert fields["ref"] == "7F3K2"
    plain = json_line(decision(request))
    assert plain.isascii()
    assert plain.isprintable()
    assert json.loads(plain)["sender"] == request.sender


# --- sinks ------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_file_is_appended_to_and_opened_anew(tmp_path: Path) -> None:
    """After a rotation the next line goes to the new file."""
    path = tmp_path / "decisions.log"
    path.write_text("before\n")
    log = DecisionLog([open_sink(f"file:{path}")])
    log.write([decision(number=1), decision(number=2)])
    path.rename(tmp_path / "decisions.log.1")
    log.write([decision(number=3)])
    log.reopen()
    log.write([decision(number=4)])
    log.close()
    log.close()
    assert [line.split()[1] for line in lines(tmp_path / "decisions.log.1")[1:]] == ["id=1", "id=2", "id=3"]
    assert [line.split()[1] for line in lines(path)] == ["id=4"]
    assert path.stat().st_mode & 0o007 == 0


def test_nothing_to_write_writes_nothing(tmp_path: Path) -> None:
    """Not even an empty line."""
    path = tmp_path / "decisions.log"
    log = DecisionLog([open_sink(f"file:{path}")])
    log.write([])
    log.close()
    DecisionLog([]).write([decision()])
    assert path.read_text() == ""


def test_a_full_disk_is_told_once_and_what_was_left_out_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits; when it works again the number is said."""
    sink = FileSink("/dev/full")
    for _ in range(3):
        sink.write(["a", "b"], [False, False])
    assert len(caplog.records) == 1
    assert "the decisions are in the database" in caplog.text
    path = tmp_path / "decisions.log"
    sink._path = str(path)
    sink.reopen()
    sink.write(["c"], [False])
    sink.close()
    assert lines(path) == ["c"]
    assert "6 lines were left out" in caplog.messages[-1]


def test_a_line_that_was_cut_short_does_not_swallow_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full in the middle of it."""
    path = tmp_path / "decisions.log"
    sink = FileSink(str(path))
    write, room = os.write, [4]

    def little(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(fd, bytes(data)[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(decisionlog.os, "write", little)
    sink.write(["first line"], [False])
    monkeypatch.setattr(decisionlog.os, "write", write)
    sink.write(["second line"], [False])
    sink.write(["third line"], [False])
    sink.close()
    assert lines(path) == ["firs", "second line", "third line"]


def test_a_file_that_cannot_be_opened_anew_is_tried_with_each_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its directory may come back."""
    directory = tmp_path / "log"
    directory.mkdir()
    sink = FileSink(str(directory / "d.log"))
    directory.rename(tmp_path / "away")
    sink.reopen()
    sink.write(["lost"], [False])
    (tmp_path / "away").rename(directory)
    sink.write(["found"], [False])
    sink.close()
    assert lines(directory / "d.log") == ["found"]
    assert "1 lines were left out" in caplog.text


def test_a_file_that_cannot_be_opened_at_the_start_is_an_error(tmp_path: Path) -> None:
    """Said then, not at the first mail."""
    with pytest.raises(OSError, match="No such file"):
        open_sink(f"file:{tmp_path}/missing/d.log")


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """For the foreground and for journald."""
    log = DecisionLog([open_sink("-")])
    log.write([decision()])
    log.reopen()
    log.close()
    assert capsys.readouterr().out == text_line(decision()) + "\n"


def test_standard_output_that_is_closed_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that went away."""

    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(decisionlog.sys, "stdout", Gone())
    open_sink("-").write(["x"], [False])


@pytest.fixture
def syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A syslog daemon's socket."""
    monkeypatch.setattr(decisionlog, "SYSLOG_SOCKET", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.setblocking(False)
        yield receiver


def test_syslog_lines_have_facility_and_severity(syslog: socket.socket) -> None:
    """mail.info for what passed, mail.notice for a refusal; the time is syslog's own."""
    log = DecisionLog([open_sink("syslog:mail")])
    log.write([decision(), decision(refused=True)])
    log.close()
    passed, refused = syslog.recv(9999).decode(), syslog.recv(9999).decode()
    assert passed.startswith(f"<{2 * 8 + 6}>policyd[{os.getpid()}]: id=7 verdict=pass")
    assert refused.startswith(f"<{2 * 8 + 5}>policyd[{os.getpid()}]: id=7 verdict=refuse")


def test_syslog_takes_whole_json(syslog: socket.socket) -> None:
    """A line of JSON is sent as it is."""
    log = DecisionLog([open_sink("syslog:local3")], "json")
    log.write([decision(refused=True)])
    log.close()
    message = syslog.recv(9999).decode()
    assert json.loads(message.split(": ", 1)[1])["ref"] == "7F3K2"


def test_syslog_that_is_away_is_told_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Restarted, its socket made anew; full, nobody waits."""
    path = tmp_path / "log"
    monkeypatch.setattr(decisionlog, "SYSLOG_SOCKET", str(path))
    sink = SyslogSink("mail")
    sink.write(["t a", "t b"], [False, False])
    assert len(caplog.records) == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        for _ in range(2_000):
            sink.write(["t c"], [False])
        assert receiver.recv(100).endswith(b"]: c")
    assert "2 lines were left out" in caplog.text
    sink.close()


def test_two_sinks_get_the_same(tmp_path: Path, syslog: socket.socket) -> None:
    """A file and syslog."""
    log = DecisionLog([open_sink(f"file:{tmp_path}/d"), open_sink("syslog:mail")])
    log.write([decision()])
    log.close()
    (line,) = lines(tmp_path / "d")
    assert syslog.recv(9999).decode().endswith(line.split(" ", 1)[1])
