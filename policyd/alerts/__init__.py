"""How an alert gets to where it is wanted: mail, webhook, a command by way of the hook, syslog or the journal."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from policyd.alert import Alert


class Sent(NamedTuple):
    """What came of an attempt."""

    #: Why it failed; "": the channel has it.
    error: str = ""
    #: The channel wants nothing any more.
    gone: bool = False
    #: It asked for so long a pause, ms.
    retry_after: int = 0


#: Tries once; returns within a bounded time and raises nothing but defects.
Deliver = Callable[[Alert], Sent]


class Guard:
    """Ends a conversation when its time is over; the time-out of a socket is that of one step, and a server that drips a byte now
    and then keeps it for ever."""

    def __init__(self, seconds: float, sock: Callable[[], socket.socket | None]) -> None:
        """
        :param sock: the socket as it is then.
        """
        self.fired = False
        self._sock = sock
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def _fire(self) -> None:
        self.fired = True
        sock = self._sock()
        if sock is not None:
            # It was closed meanwhile, perhaps.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        """The conversation is over."""
        self._timer.cancel()
