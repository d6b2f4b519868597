"""The decision log: one line a decision, for people and for grep; derived after the commit, the database is the authority.

Text: ``time id=… action="…" check=… …``, one ``key=value`` each, absent values left out. What comes from outside is
escaped, so a decision is one printable ASCII line whatever a sender wrote. Sinks: ``file:PATH``, ``-`` (standard output),
``syslog:FACILITY`` (the local syslog socket). A sink in trouble never delays an answer: one thread alone writes, from a
queue with a bound. Lines that cannot be taken are counted, and the count is reported when it works again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from policyd.answer import escape
from policyd.decision import REFUSED, Decision

log = logging.getLogger("policyd.log")

#: Facilities of syslog(3) that a sink can name.
FACILITIES = {"user": 1, "mail": 2, "daemon": 3, "auth": 4, "authpriv": 10} | {
    f"local{n}": 16 + n for n in range(8)
}
SYSLOG_SOCKET = "/dev/log"
_INFO, _NOTICE = 6, 5
_STDOUT = 1
#: Decisions that wait for their sinks at most: some 40 MB, and minutes of a busy server's mail.
BACKLOG = 20_000
#: How long the end waits for sinks that take nothing, s.
ENDING = 3.0
#: Between two looks at whether the files are still there, s.
LOOK = 1.0


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        """Take whole lines, without line ends; never raises, never waits for long."""

    def reopen(self) -> None:
        """Open anew, after a rotation."""

    def look(self) -> None:
        """Open anew if nobody will find what is written, because the file was removed."""

    def close(self) -> None:
        """Let go."""


class FileSink:
    """A file that lines are appended to, or a FIFO that is read at its start."""

    def __init__(self, path: str) -> None:
        """
        :raises OSError: it cannot be opened.
        """
        self._path = path
        self._fd = self._open()
        self._lost = 0
        #: Whether what was written last ends within a line.
        self._torn = False
        #: Whether the last look found another file than the one that is open. At the first look that is enough.
        self._missed = True

    def __str__(self) -> str:
        return self._path

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        """See :class:`Sink`."""
        # After a line that was cut short a new one begins.
        data = (("\n" if self._torn else "") + "\n".join(lines) + "\n").encode()
        try:
            if self._fd < 0:
                self._fd = self._open()
            view = memoryview(data)
            while view:
                written = os.write(self._fd, view)
                self._torn = view[written - 1] != ord("\n")
                view = view[written:]
        except OSError as error:
            if not self._lost:
                log.error("decision log %s: %s; the decisions are in the database", self, error.strerror)
            self._lost += len(lines)
            return
        if self._lost:
            log.warning("decision log %s is written again; %d lines were left out", self, self._lost)
            self._lost = 0

    def reopen(self) -> None:
        """See :class:`Sink`."""
        self.close()
        self._torn = self._missed = False
        try:
            self._fd = self._open()
        except OSError as error:
            log.error("decision log %s: %s", self, error.strerror)

    def look(self) -> None:
        """See :class:`Sink`."""
        if self._fd < 0:
            return
        missed, self._missed = self._missed, not self._is_there()
        # At the second look: between the two, logrotate makes the new file itself and sends its signal.
        if missed and self._missed:
            log.warning("decision log %s was removed or renamed; a new one is begun", self)
            self.reopen()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # What cannot be looked at can still be written to.
            return True

    def close(self) -> None:
        """See :class:`Sink`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        # Not to wait for somebody who reads a FIFO; that one is opened is all that is not waited for.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o640)
        os.set_blocking(fd, True)
        return fd


class OutputSink(FileSink):
    """Standard output: the descriptor, for at the end Python would wait for whoever is within ``sys.stdout``."""

    def __init__(self) -> None:
        super().__init__("on standard output")

    def reopen(self) -> None:
        """See :class:`Sink`."""

    def look(self) -> None:
        """See :class:`Sink`."""

    def close(self) -> None:
        """See :class:`Sink`."""

    def _open(self) -> int:
        return _STDOUT


class SyslogSink:
    """The local syslog socket: a datagram a line (RFC 3164 as the local daemons read it), never waited for."""

    def __init__(self, facility: str) -> None:
        self._facility = FACILITIES[facility]
        self._socket: socket.socket | None = None
        self._lost = 0

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        """See :class:`Sink`."""
        for line, is_refused in zip(lines, refused, strict=True):
            priority = self._facility * 8 + (_NOTICE if is_refused else _INFO)
            # The time at the start of a line of text is syslog's own business.
            message = f"<{priority}>policyd[{os.getpid()}]: ".encode()
            message += (line if line[0] == "{" else line.split(" ", 1)[-1]).encode()
            try:
                if self._socket is None:
                    self._connect()
                assert self._socket is not None
                self._socket.send(message)
            except OSError as error:
                self.reopen()
                if not self._lost:
                    log.error("decision log to syslog: %s; the decisions are in the database", error.strerror)
                self._lost += 1
            else:
                if self._lost:
                    log.warning("decision log to syslog works again; %d lines were left out", self._lost)
                    self._lost = 0

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(SYSLOG_SOCKET)

    def reopen(self) -> None:
        """See :class:`Sink`."""
        self.close()

    def look(self) -> None:
        """See :class:`Sink`; a socket that nobody has any more takes no line."""

    def close(self) -> None:
        """See :class:`Sink`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def open_sink(name: str) -> Sink:
    """The sink that the configuration names.

    :raises OSError: the file cannot be opened.
    """
    if name == "-":
        return OutputSink()
    kind, _, rest = name.partition(":")
    return SyslogSink(rest) if kind == "syslog" else FileSink(rest)


#: For how long lines are gathered before they are written together, s.
GATHERING = 0.1


class DecisionLog:
    """Has each decision written to every sink by a thread of its own; its methods belong to the loop and do not wait."""

    def __init__(self, sinks: Iterable[Sink], form: str = "text") -> None:
        """
        :param form: ``text`` or ``json``.
        """
        self._sinks = tuple(sinks)
        self._line = json_line if form == "json" else text_line
        #: Guards everything below.
        self._changed = threading.Condition()
        self._queue: deque[Sequence[Decision]] = deque()
        #: Decisions in the queue and in hand.
        self._waiting = 0
        #: Decisions that found the queue full.
        self._lost = 0
        #: Whether the thread has something in hand.
        self._busy = False
        #: Whether the thread has to be woken for what comes.
        self._asleep = False
        #: How many wait for everything to be written.
        self._flushing = 0
        self._reopening = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def write(self, decisions: Sequence[Decision]) -> None:
        """One line for each, soon; nothing any more after :meth:`close`."""
        if not self._sinks or not decisions:
            return
        with self._changed:
            if self._closing:
                return
            room = BACKLOG - self._waiting
            if room < len(decisions):
                if not self._lost:
                    log.error(
                        "decision log takes nothing; %d lines wait, and lines are left out from here on; "
                        "the decisions are in the database",
                        BACKLOG,
                    )
                self._lost += len(decisions) - room
                decisions = decisions[:room]
            if decisions:
                self._queue.append(decisions)
                self._waiting += len(decisions)
                if self._asleep or self._thread is None:
                    self._wake()

    def reopen(self) -> None:
        """Open every sink anew, after a rotation. Every line handed over from now on goes to the new file."""
        with self._changed:
            if self._sinks and not self._closing:
                self._reopening = True
                self._wake()

    def flush(self, patience: float = ENDING) -> bool:
        """Wait until all is written, at most so long, in s; whether it is."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(
                    lambda: not (self._queue or self._reopening or self._busy), patience
                )
            finally:
                self._flushing -= 1

    def close(self, patience: float = ENDING) -> bool:
        """Take nothing more, write what is queued and close every sink; wait for that at most so long, in s.

        :return: whether it is done. If not, the thread goes on with it; it does not keep the process alive.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is None:
            for sink in self._sinks:
                sink.close()
            return True
        self._thread.join(patience)
        if self._thread.is_alive() and patience:
            log.error(
                "decision log takes nothing; %d lines are not written; the decisions are in the database",
                self._waiting + self._lost,
            )
        return not self._thread.is_alive()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="decision log", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        next_look = 0.0
        while True:
            # Also while nothing comes: the next lines are not to go to a file that is gone.
            if time.monotonic() >= next_look:
                for sink in self._sinks:
                    sink.look()
                next_look = time.monotonic() + LOOK
            with self._changed:
                self._asleep = True
                woken = self._changed.wait_for(
                    lambda: self._queue or self._reopening or self._closing, next_look - time.monotonic()
                )
                self._asleep = False
                if not woken:
                    continue
                # Many lines at once: a thread that wakes for each batch quarrels with the others over the interpreter.
                self._changed.wait_for(lambda: self._reopening or self._closing or self._flushing, GATHERING)
                reopening, self._reopening = self._reopening, False
                batch: Sequence[Decision] = [decision for each in self._queue for decision in each]
                self._queue.clear()
                if not (batch or reopening):
                    break
                self._busy = True
            if reopening:
                for sink in self._sinks:
                    sink.reopen()
            if batch:
                self._put(batch)
            lost = 0
            with self._changed:
                self._busy = False
                self._waiting -= len(batch)
                # Half empty: else a sink that is only slow would be told of with each batch.
                if self._waiting <= BACKLOG // 2:
                    lost, self._lost = self._lost, 0
                self._changed.notify_all()
            if lost:
                log.warning("decision log is written again; %d lines were left out", lost)
        for sink in self._sinks:
            sink.close()

    def _put(self, decisions: Sequence[Decision]) -> None:
        try:
            lines = [self._line(decision) for decision in decisions]
            refused = [decision.settled.verdict == REFUSED for decision in decisions]
            for sink in self._sinks:
                sink.write(lines, refused)
        except Exception:  # a defect must not end the log
            if len(decisions) > 1:
                # The one that cannot be written must not cost those that came with it.
                for decision in decisions:
                    self._put((decision,))
            else:
                log.exception("decision log: %d lines could not be written", len(decisions))


def text_line(decision: Decision) -> str:
    """The decision as one line of ``key=value``."""
    identifier, _, wall_at, request, settled, policy, micros = decision
    if not (settled.reason or settled.would or settled.mark or settled.answer.text):
        line = (
            f"{_time(wall_at)} id={identifier} verdict={settled.verdict} check={settled.by or '-'} stage={request.stage} "
            f"instance={request.instance} queue_id={request.queue_id} user={request.account} "
            f"client={request.client_address} sender=<{request.sender}> recipient=<{request.recipient}> "
            f"rcpts={request.recipient_count} size={request.size} action={settled.answer.verb} policy={policy} us={micros}"
        )
        if _PLAIN_LINE.fullmatch(line):
            return line
    parts = [f"{_time(wall_at)} id={identifier} verdict={settled.verdict} check={settled.by or '-'}"]
    if settled.ref:
        parts.append(f"ref={settled.ref}")
    if request.stage:
        parts.append(f"stage={_value(request.stage)}")
    if request.instance:
        parts.append(f"instance={_value(request.instance)}")
    if request.queue_id:
        parts.append(f"queue_id={_value(request.queue_id)}")
    if request.account:
        parts.append(f"user={_value(request.account)}")
    if request.client_address:
        parts.append(f"client={_value(request.client_address)}")
    parts.append(f"sender=<{_value(request.sender, _ADDRESS)}>")
    if request.recipient:
        parts.append(f"recipient=<{_value(request.recipient, _ADDRESS)}>")
    answer = settled.answer
    parts.append(
        f"rcpts={request.recipient_count} size={request.size} "
        + (f"action={_value(f'{answer.verb} {answer.text}')}" if answer.text else f"action={answer.verb}")
    )
    if settled.reason:
        parts.append(f"reason={_value(settled.reason)}")
    if settled.would:
        parts.append(f"would={_value(settled.would)}")
    if settled.mark:
        parts.append(f"mark={_value(settled.mark)}")
    parts.append(f"policy={policy} us={micros}")
    return " ".join(parts)


def json_line(decision: Decision) -> str:
    """The decision as one line of JSON, ASCII."""
    request, settled = decision.request, decision.settled
    return json.dumps(
        {
            "time": _time(decision.wall_at),
            "id": decision.id,
            "verdict": settled.verdict,
            "check": settled.by,
            "stage": request.stage,
            "ref": settled.ref,
            "direction": request.direction,
            "listener": request.listener,
            "context": request.policy_context,
            "instance": request.instance,
            "queue_id": request.queue_id,
            "user": request.account,
            "client": request.client_address,
            "client_name": request.client_name,
            "helo": request.helo_name,
            "sender": request.sender,
            "recipient": request.recipient,
            "rcpts": request.recipient_count,
            "size": request.size,
            "action": str(settled.answer),
            "reason": settled.reason,
            "would": settled.would,
            "mark": settled.mark,
            "detail": json.loads(settled.detail),
            "policy": decision.policy,
            "us": decision.micros,
        },
        separators=(",", ":"),
    )


#: What stands for itself as a value, and as an address within ``<>``; to a shell ' begins a quotation.
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&()*+,./:;<>?@\[\]^_`{|}~-]+", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&()*+,./:;=?@\[\]^_`{|}~-]*", re.ASCII)


#: A line whose values all stand for themselves.
_PLAIN_LINE = re.compile(
    r"[0-9TZ:.-]+ id=\d+ verdict=[a-z]+ check=[a-z0-9-]+ stage=[A-Z-]+ instance=V queue_id=V user=V client=V "
    r"sender=<A> recipient=<A> rcpts=\d+ size=\d+ action=[A-Z_]+ policy=[0-9a-f]* us=-?\d+".replace(
        "V", r"[A-Za-z0-9!#$%&()*+,./:;<>?@\[\]^_`{|}~-]+"
    ).replace("A>", r"[A-Za-z0-9!#$%&()*+,./:;?@\[\]^_`{|}~-]+>"),
    re.ASCII,
)


def _value(text: str, plain: re.Pattern[str] = _PLAIN) -> str:
    """``text`` as it is when it can stand for itself, else escaped and in quotes."""
    if plain.fullmatch(text):
        return text
    return '"' + escape(text, 400).replace('"', '\\"') + '"'


@lru_cache(maxsize=8)
def _second(wall_s: int) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _time(wall_ms: int) -> str:
    """RFC 3339, UTC, with milliseconds."""
    seconds, ms = divmod(wall_ms, 1000)
    return f"{_second(seconds)}.{ms:03d}Z"
