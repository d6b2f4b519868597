"""The decision log: a decision is one line whatever a sender sends, and a sink in trouble delays nobody."""

from __future__ import annotations

import json
import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd import decisionlog
from policyd.answer import DUNNO, make_answer
from policyd.decision import Decision, Settled
from policyd.decisionlog import DecisionLog, FileSink, SyslogSink, json_line, open_sink, text_line
from policyd.request import Request
from tests.fakes import ask, end_of, from_outside
from tests.system.waiting import PATIENCE, wait_for

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


@example({"sender": "o'brien@example.org"})
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


def test_a_file_is_appended_to_and_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rotation the next line goes to the new file."""
    monkeypatch.setattr(decisionlog, "LOOK", PATIENCE)
    path = tmp_path / "decisions.log"
    path.write_text("before\n")
    log = DecisionLog([open_sink(f"file:{path}")])
    log.write([decision(number=1), decision(number=2)])
    assert log.flush()
    path.rename(tmp_path / "decisions.log.1")
    log.write([decision(number=3)])
    assert log.flush()
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


def test_a_file_that_is_gone_is_begun_anew_at_the_second_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Removed, renamed, or another in its place; a rotation whose signal is still on its way is let be."""
    path = tmp_path / "d.log"
    sink = FileSink(str(path))
    sink.look()
    path.unlink()
    sink.look()
    assert not path.exists()
    sink.look()
    sink.write(["after it was removed"], [False])
    assert lines(path) == ["after it was removed"]
    path.rename(tmp_path / "d.log.1")
    path.write_text("made by logrotate\n")
    sink.look()
    sink.write(["to the old one"], [False])
    sink.reopen()
    sink.write(["after the signal"], [False])
    sink.look()
    sink.look()
    sink.close()
    sink.look()
    assert lines(tmp_path / "d.log.1") == ["after it was removed", "to the old one"]
    assert lines(path) == ["made by logrotate", "after the signal"]
    assert caplog.messages == [f"decision log {path} was removed or renamed; a new one is begun"]


def test_a_file_that_was_removed_before_the_first_line_is_begun_anew_for_it(tmp_path: Path) -> None:
    """However long ago that was: the first line is in a file that can be found."""
    path = tmp_path / "d.log"
    log = DecisionLog([open_sink(f"file:{path}")])
    path.unlink()
    log.write([decision(number=1)])
    log.close()
    assert [line.split()[1] for line in lines(path)] == ["id=1"]


def test_a_removed_directory_is_told_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is left out meanwhile is counted, for nobody would find it in a file without a name."""
    directory = tmp_path / "log"
    directory.mkdir()
    sink = FileSink(str(directory / "d.log"))
    (directory / "d.log").unlink()
    directory.rmdir()
    sink.look()
    sink.look()
    sink.write(["lost"], [False])
    directory.mkdir()
    sink.write(["found"], [False])
    sink.close()
    assert lines(directory / "d.log") == ["found"]
    assert "1 lines were left out" in caplog.messages[-1]


def test_a_removed_file_is_noticed_without_a_signal_and_without_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the log's own thread, so that the next decision can be found."""
    monkeypatch.setattr(decisionlog, "LOOK", 0.001)
    path = tmp_path / "d.log"
    log = DecisionLog([open_sink(f"file:{path}")])
    log.write([decision(number=1)])
    assert log.flush()
    for _ in range(3):
        path.unlink()
        wait_for(path.exists, lambda: "it does not come back")
    log.write([decision(number=2)])
    log.close()
    assert [line.split()[1] for line in lines(path)] == ["id=2"]


def test_a_file_that_cannot_be_opened_at_the_start_is_an_error(tmp_path: Path) -> None:
    """Said then, not at the first mail."""
    with pytest.raises(OSError, match="No such file"):
        open_sink(f"file:{tmp_path}/missing/d.log")


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """For the foreground and for journald."""
    log = DecisionLog([open_sink("-")])
    log.write([decision()])
    log.reopen()
    log.close()
    assert capfd.readouterr().out == text_line(decision()) + "\n"


def test_standard_output_that_is_closed_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that went away ends nothing."""

    def gone(fd: int, data: bytes) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    sink = open_sink("-")
    with monkeypatch.context() as patched:
        patched.setattr(decisionlog.os, "write", gone)
        sink.write(["x"], [False])
        sink.write(["y"], [False])
    assert caplog.messages == [
        "decision log on standard output: Broken pipe; the decisions are in the database"
    ]


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


# --- the thread -------------------------------------------------------------------------------------------------------


def in_time(call: Callable[[], object]) -> None:
    """Call it, and fail if it does not come back."""
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(PATIENCE)
    assert not caller.is_alive(), "the caller waits for a sink"


class Pipe:
    """A log behind a FIFO whose reader reads only when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.log = DecisionLog([open_sink(f"file:{path}")])
        self.text = ""

    def fill(self, count: int = 1000) -> None:
        """Hand it more than the pipe holds, in batches of five."""
        for first in range(0, count, 5):
            self.log.write([decision(number=number) for number in range(first, first + 5)])

    def numbers(self) -> list[int]:
        """The decisions that came out so far."""
        try:
            while data := os.read(self._reader, 65536):
                self.text += data.decode()
        except BlockingIOError:
            pass
        return [
            int(line.split()[1].removeprefix("id="))
            for line in self.text.splitlines(True)
            if line[-1] == "\n"
        ]

    def close(self) -> None:
        """The reader goes away for good."""
        os.close(self._reader)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path / "fifo")
    yield pipe
    pipe.close()
    pipe.log.close()


def test_a_reader_that_has_stopped_delays_nobody_and_gets_all_in_the_end(pipe: Pipe) -> None:
    """More than a pipe holds: writing and opening anew return; when it reads again, each line comes once and in order."""
    in_time(pipe.fill)
    in_time(pipe.log.reopen)
    assert not pipe.log.flush(0)
    wait_for(lambda: len(pipe.numbers()) == 1000, lambda: pipe.text[-1000:])
    assert pipe.numbers() == list(range(1000))
    assert pipe.log.flush()


def test_more_than_is_kept_is_counted_and_told(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue has a bound; what goes beyond it is said once when it begins, and in number when lines go out again."""
    monkeypatch.setattr(decisionlog, "BACKLOG", 602)
    in_time(lambda: pipe.fill(4000))
    assert [message for message in caplog.messages if "left out from here on" in message] == caplog.messages
    assert len(caplog.messages) == 1
    wait_for(lambda: pipe.numbers() and pipe.log.flush(0), lambda: pipe.text[-1000:])
    numbers = pipe.numbers()
    assert numbers == sorted(set(numbers))
    assert 602 <= len(numbers) < 4000
    assert f"{4000 - len(numbers)} lines were left out" in caplog.messages[-1]
    pipe.log.write([decision(number=5000)])
    assert pipe.log.flush()
    assert pipe.numbers()[-1] == 5000
    assert len(caplog.messages) == 2


def test_the_end_waits_for_what_is_queued(pipe: Pipe) -> None:
    """Everything that was handed over before close() is written by it."""
    in_time(pipe.fill)
    closing = threading.Thread(target=pipe.log.close, args=(PATIENCE,))
    closing.start()
    wait_for(lambda: len(pipe.numbers()) == 1000, lambda: pipe.text[-1000:])
    closing.join()
    assert pipe.numbers() == list(range(1000))


def test_the_end_does_not_wait_for_ever(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    """A sink that takes nothing: the number of lines that stay behind is said, and where they are."""
    in_time(pipe.fill)
    in_time(lambda: pipe.log.close(0.01))
    assert "lines are not written" in caplog.messages[-1]
    assert "the decisions are in the database" in caplog.messages[-1]
    in_time(lambda: pipe.log.write([decision()]))


def test_a_pipe_that_nobody_reads_is_an_error_at_once(tmp_path: Path) -> None:
    """Opening it would wait for a reader."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        open_sink(f"file:{tmp_path}/fifo")


def test_a_rotation_while_lines_are_queued_loses_none_and_doubles_none(tmp_path: Path) -> None:
    """Renamed and opened anew again and again under load: each line stands once, in one of the files."""
    path = tmp_path / "d"
    log = DecisionLog([open_sink(f"file:{path}")])
    for number in range(3000):
        log.write([decision(number=number)])
        if number % 100 == 50:
            wait_for(path.exists, lambda: str(list(tmp_path.iterdir())))
            path.rename(tmp_path / f"d.{number}")
            log.reopen()
    log.close()
    found = [int(line.split()[1].removeprefix("id=")) for file in tmp_path.iterdir() for line in lines(file)]
    assert len(list(tmp_path.iterdir())) == 31
    assert sorted(found) == list(range(3000))


def test_a_decision_that_cannot_be_put_into_words_does_not_end_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect: told, with the number of lines; the next batch is written."""
    log = DecisionLog([open_sink(f"file:{tmp_path}/d")], "json")
    good = decision()
    log.write([good._replace(settled=good.settled._replace(detail="{"))])
    log.write([decision(number=8)])
    log.close()
    assert [json.loads(line)["id"] for line in lines(tmp_path / "d")] == [8]
    assert "1 lines could not be written" in caplog.text
