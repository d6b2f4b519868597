"""An alert to a command: handed to the hook, a process of its own beside the daemon, whose sandbox stays closed."""

from __future__ import annotations

import json
import socket
import time

from policyd.alert import Alert
from policyd.alerts import Sent
from policyd.alerts.payload import payload

#: Longest answer of the hook, octets.
MOST_ANSWER = 4_096


class Hook:
    """Has one command run by who listens on the hook's socket (policyd.hook)."""

    def __init__(self, command: str, path: str, host: str, timeout: float) -> None:
        """
        :param timeout: how long the hook has, s; it ends the command itself before.
        """
        self._command, self._path, self._host, self._timeout = command, path, host, timeout

    def __call__(self, alert: Alert) -> Sent:
        """Try once."""
        asked = {"command": self._command, "seconds": self._timeout, "alert": payload(alert, self._host)}
        until = time.monotonic() + self._timeout + 5
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(self._timeout)
                sock.connect(self._path)
                sock.sendall(json.dumps(asked).encode())
                sock.shutdown(socket.SHUT_WR)
                data = b""
                while len(data) < MOST_ANSWER and (left := until - time.monotonic()) > 0:
                    sock.settimeout(left)
                    piece = sock.recv(MOST_ANSWER)
                    if not piece:
                        break
                    data += piece
        except TimeoutError:
            return Sent(f"{self._command}: the hook did not answer in time")
        except OSError as error:
            return Sent(
                f"{self._path}: {error.strerror or error}; start policyd-hook.socket, see contrib/alerts"
            )
        try:
            said = str(json.loads(data)["error"])
        except (ValueError, KeyError, TypeError):
            return Sent(f"{self._path}: the hook ended without an answer")
        return Sent(said[:300])
