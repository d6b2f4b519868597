"""Facts about the clock: what the kernel, the hardware clock and the database say of it."""

from __future__ import annotations

import ctypes
import ctypes.util
import sqlite3
import struct
import time

from policyd.doctor.facts import Clock
from policyd.store.clock import ledger_now, stored_base, wall

_HARDWARE = "/sys/class/rtc/rtc0/since_epoch"
#: linux/timex.h: the clock is not synchronised.
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


def look(connection: sqlite3.Connection | None) -> Clock:
    """The clock of this machine, and how far it was set since the daemon wrote into the database."""
    return Clock(synchronised(), _stepped(connection), _from_hardware())


def synchronised() -> bool | None:
    """Whether the kernel says that somebody keeps the clock right; ``None`` where it says nothing."""
    try:
        libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6")
        # struct timex: modes, then offset, freq, maxerror and esterror, then status; with modes 0 nothing is set.
        buffer = ctypes.create_string_buffer(512)
        state = libc.adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    status = struct.unpack_from("@i4li", buffer)[5]
    return not (state == _TIME_ERROR or status & _STA_UNSYNC)


def _stepped(connection: sqlite3.Connection | None) -> int:
    base = stored_base(connection) if connection is not None else None
    if connection is None or base is None:
        return 0
    return (wall() - ledger_now(connection)) - (base.wall - base.ledger)


def _from_hardware() -> int | None:
    try:
        with open(_HARDWARE, encoding="ascii") as file:
            return round(time.time()) - int(file.read())
    except (OSError, ValueError):
        return None
