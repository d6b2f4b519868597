"""Messages on standard error: in order, complete while somebody reads, and never waited for."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator

import pytest

from policyd import messages as messages_module
from policyd.messages import Messages
from tests.system.waiting import wait_for


class Reader:
    """A pipe whose reader reads only when it is told to."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self.text = ""

    def lines(self) -> list[str]:
        """The whole lines that came out so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 65536):
                self.text += data.decode()
        return self.text.split("\n")[:-1]

    def gone(self) -> None:
        """It reads nothing any more, for good."""
        os.close(self._read)

    def close(self) -> None:
        """The test is over."""
        for fd in (self._read, self.write):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    # What a page of memory holds: full soon.
    fcntl.fcntl(reader.write, fcntl.F_SETPIPE_SZ, 4096)
    yield reader
    reader.close()


def record(number: int, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("policyd.test", level, __file__, 1, "message %d", (number,), None)


def test_what_is_logged_comes_out_in_order_with_its_level(reader: Reader) -> None:
    """Also what is no log record, in its turn; and flush() means that it is written."""
    messages = Messages(reader.write)
    messages.handle(record(1))
    messages.say("policyd: as it is")
    messages.handle(record(2, logging.ERROR))
    messages.flush()
    assert reader.lines() == [
        "WARNING policyd.test: message 1",
        "policyd: as it is",
        "ERROR policyd.test: message 2",
    ]


def test_a_reader_who_has_stopped_is_not_waited_for(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging returns however much there is; what does not fit is counted, and the count comes with the rest."""
    monkeypatch.setattr(messages_module, "BACKLOG", 500)
    monkeypatch.setattr(messages_module, "ENDING", 0.01)
    messages = Messages(reader.write)
    for number in range(3000):
        messages.handle(record(number))
    messages.flush()

    def numbers() -> list[int]:
        return [int(line.split()[-1]) for line in reader.lines() if " message " in line]

    def left_out() -> int:
        return sum(int(line.split()[2]) for line in reader.lines() if "were left out" in line)

    # Whoever hands over is quicker than who writes, also before the pipe is full.
    wait_for(lambda: len(numbers()) + left_out() == 3000, lambda: reader.text[-1000:])
    assert numbers() == sorted(set(numbers()))
    assert 500 <= len(numbers()) < 3000
    messages.handle(record(3000))
    wait_for(lambda: numbers()[-1] == 3000, lambda: reader.text[-1000:])


def test_a_pipe_that_does_not_wait_is_waited_for(reader: Reader) -> None:
    """Whoever shares the terminal may have made it one: no message is torn or lost for that."""
    os.set_blocking(reader.write, False)
    messages = Messages(reader.write)
    for number in range(1000):
        messages.handle(record(number))
    wait_for(lambda: len(reader.lines()) == 1000, lambda: reader.text[-1000:])
    assert [int(line.split()[-1]) for line in reader.lines()] == list(range(1000))


def test_a_reader_that_is_gone_ends_nothing(reader: Reader) -> None:
    """``policyd 2>&1 | less``, and less was left."""
    messages = Messages(reader.write)
    reader.gone()
    for number in range(1000):
        messages.handle(record(number))
        messages.flush()


def test_text_that_is_no_unicode_is_written_too(reader: Reader) -> None:
    """A path with octets that are no UTF-8."""
    messages = Messages(reader.write)
    messages.say("policyd: /tmp/\udcff")
    messages.flush()
    assert reader.lines() == ["policyd: /tmp/\\udcff"]


def test_the_journal_learns_the_level(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line, also the second one of a message, has its priority where stderr is the journal, and nowhere else."""
    status = os.fstat(reader.write)
    for stream, marks in (
        (f"{status.st_dev}:{status.st_ino}", ["<3>", "<3>", "<4>", "<6>", "<2>", "<3>"]),
        (f"{status.st_dev}:{status.st_ino + 1}", [""] * 6),
    ):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        reader.text = ""
        messages = Messages(reader.write)
        messages.say("policyd: no\nand why")
        for number, level in enumerate((logging.WARNING, logging.INFO, logging.CRITICAL, logging.ERROR)):
            messages.handle(record(number, level))
        messages.flush()
        assert reader.lines() == [
            mark + text
            for mark, text in zip(
                marks,
                [
                    "policyd: no",
                    "and why",
                    "WARNING policyd.test: message 0",
                    "INFO policyd.test: message 1",
                    "CRITICAL policyd.test: message 2",
                    "ERROR policyd.test: message 3",
                ],
                strict=True,
            )
        ]
