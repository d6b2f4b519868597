"""The decision log: one line a decision, for people and for grep; derived after the commit, the database is the authority.

Text: ``time id=… action="…" check=… …``, one ``key=value`` each, absent values left out. What comes from outside is
escaped, so a decision is one printable ASCII line whatever a sender wrote. Sinks: ``file:PATH``, ``-`` (standard output),
``syslog:FACILITY`` (the local syslog socket). A sink in trouble never delays an answer: lines it cannot take are counted
and the count is reported when it works again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
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


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        """Take whole lines, without line ends; never raises, never waits for long."""

    def reopen(self) -> None:
        """Open anew, after a rotation."""

    def close(self) -> None:
        """Let go."""


class FileSink:
    """A file that lines are appended to."""

    def __init__(self, path: str) -> None:
        """
        :raises OSError: it cannot be opened.
        """
        self._path = path
        self._fd = _open(path)
        self._lost = 0
        #: Whether what was written last ends within a line.
        self._torn = False

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        """See :class:`Sink`."""
        # After a line that was cut short a new one begins.
        data = (("\n" if self._torn else "") + "\n".join(lines) + "\n").encode()
        try:
            if self._fd < 0:
                self._fd = _open(self._path)
            view = memoryview(data)
            while view:
                written = os.write(self._fd, view)
                self._torn = view[written - 1] != ord("\n")
                view = view[written:]
        except OSError as error:
            if not self._lost:
                log.error(
                    "decision log %s: %s; the decisions are in the database", self._path, error.strerror
                )
            self._lost += len(lines)
            return
        if self._lost:
            log.warning("decision log %s is written again; %d lines were left out", self._path, self._lost)
            self._lost = 0

    def reopen(self) -> None:
        """See :class:`Sink`."""
        self.close()
        self._torn = False
        try:
            self._fd = _open(self._path)
        except OSError as error:
            log.error("decision log %s: %s", self._path, error.strerror)

    def close(self) -> None:
        """See :class:`Sink`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


class OutputSink:
    """Standard output."""

    def write(self, lines: Sequence[str], refused: Sequence[bool]) -> None:
        """See :class:`Sink`."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()

    def reopen(self) -> None:
        """See :class:`Sink`."""

    def close(self) -> None:
        """See :class:`Sink`."""


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


class DecisionLog:
    """Writes each decision to every sink."""

    def __init__(self, sinks: Iterable[Sink], form: str = "text") -> None:
        """
        :param form: ``text`` or ``json``.
        """
        self._sinks = tuple(sinks)
        self._line = json_line if form == "json" else text_line

    def write(self, decisions: Sequence[Decision]) -> None:
        """One line for each."""
        if self._sinks and decisions:
            lines = [self._line(decision) for decision in decisions]
            refused = [decision.settled.verdict == REFUSED for decision in decisions]
            for sink in self._sinks:
                sink.write(lines, refused)

    def reopen(self) -> None:
        """Open every sink anew, after a rotation."""
        for sink in self._sinks:
            sink.reopen()

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


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


#: What stands for itself as a value, and as an address within ``<>``.
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'()*+,./:;<>?@\[\]^_`{|}~-]+", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'()*+,./:;=?@\[\]^_`{|}~-]*", re.ASCII)


#: A line whose values all stand for themselves.
_PLAIN_LINE = re.compile(
    r"[0-9TZ:.-]+ id=\d+ verdict=[a-z]+ check=[a-z0-9-]+ stage=[A-Z-]+ instance=V queue_id=V user=V client=V "
    r"sender=<A> recipient=<A> rcpts=\d+ size=\d+ action=[A-Z_]+ policy=[0-9a-f]* us=-?\d+".replace(
        "V", r"[A-Za-z0-9!#$%&'()*+,./:;<>?@\[\]^_`{|}~-]+"
    ).replace("A>", r"[A-Za-z0-9!#$%&'()*+,./:;?@\[\]^_`{|}~-]+>"),
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
