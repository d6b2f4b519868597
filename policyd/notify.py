"""What the service manager is told about policyd, by sd_notify(3): a few words on a datagram socket.

Nothing is sent, and nothing is wrong, where nobody asked for it (``NOTIFY_SOCKET`` is not set).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Manager:
    """The service manager that started this process, if one did."""

    def __init__(self) -> None:
        """Take what it put into the environment out of there: what policyd starts is not to speak for it."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        period = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        #: Seconds within which it wants a sign of life again and again; 0: never.
        self.watchdog = 0.0
        if address and meant == str(os.getpid()) and period.isdigit():
            self.watchdog = int(period) / 1_000_000
        # An @ stands for the NUL of a name that is in no directory.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """The start, or a reload, is done; ``status`` is what ``systemctl status`` shows."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read; :meth:`ready` follows, whatever comes of it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", "STATUS=ending")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, *words: str) -> None:
        if not self._address:
            return
        # A manager that does not listen, or not now, must stop no mail: the watchdog's next sign comes soon.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(words).encode(errors="backslashreplace"), self._address)
