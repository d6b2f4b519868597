"""An alert to syslog or to systemd's journal: one datagram to the local socket."""

from __future__ import annotations

import os
import socket

from policyd.alert import Alert
from policyd.alerts import Sent
from policyd.alerts.text import words
from policyd.decisionlog import FACILITIES, SYSLOG_SOCKET

JOURNAL_SOCKET = "/run/systemd/journal/socket"
#: Priorities of syslog(3): what began, and what is over.
_ALERT, _NOTICE = 1, 5
#: A datagram that every daemon takes, octets.
MOST = 8_000


class Syslog:
    """One line to a facility."""

    def __init__(self, facility: str, path: str = SYSLOG_SOCKET) -> None:
        self._facility, self._path = FACILITIES[facility], path

    def __call__(self, alert: Alert) -> Sent:
        """Try once."""
        said = words(alert)
        facts = "; ".join(f"{name}: {value}" for name, value in (*said.facts, *said.commands))
        priority = self._facility * 8 + (_NOTICE if alert.resolved else _ALERT)
        line = f"<{priority}>policyd[{os.getpid()}]: alert {alert.kind} {alert.uid}: {said.title}; {facts}"
        return _send(self._path, line.encode("ascii", "backslashreplace")[:MOST])


class Journal:
    """One entry with fields of its own, for journalctl POLICYD_KIND=suspend."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path

    def __call__(self, alert: Alert) -> Sent:
        """Try once."""
        said = words(alert)
        fields = {
            "PRIORITY": str(_NOTICE if alert.resolved else _ALERT),
            "SYSLOG_IDENTIFIER": "policyd",
            "POLICYD_ALERT": alert.uid,
            "POLICYD_KIND": alert.kind,
            "POLICYD_SUBJECT": alert.subject,
            "MESSAGE": said.text()[: MOST // 2],
        }
        entry = b""
        for name, value in fields.items():
            # With its length, so that no value can begin a field (systemd's native journal protocol).
            data = value.encode("utf-8", "backslashreplace")
            entry += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        return _send(self._path, entry)


def _send(path: str, data: bytes) -> Sent:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect(path)
            sock.send(data)
    except OSError as error:
        return Sent(f"{path}: {error.strerror or error}")
    return Sent()
