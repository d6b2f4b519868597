"""Ledger time: a clock that never goes back, is not moved by steps of the wall clock, and survives restarts.

Ledger time is the elapsed CLOCK_BOOTTIME added to a base that is written with every batch. After a reboot, when the
boot id differs, it starts from the larger of wall clock and what was stored. Windows, bans and expiries use it; the
wall clock is for display and logs.
"""

from __future__ import annotations

import sqlite3
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
#: A difference between wall clock and ledger time that changes by more than this is alarmed, ms.
STEP = 2_000


class Base(NamedTuple):
    """Where ledger time stood, and by what it can be found again."""

    boot_id: str
    boottime: int
    ledger: int
    wall: int


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none, which makes every start count as a reboot."""
    try:
        return BOOT_ID_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def boottime() -> int:
    """Milliseconds since boot, suspended time included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def wall() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def look() -> tuple[int, int]:
    """Boot time and wall time (ms) of one look: as long as no clock is stepped, each look finds them equally far apart."""
    boottime_ns, wall_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
    elapsed = boottime_ns // 1_000_000
    return elapsed, elapsed + round((wall_ns - boottime_ns) / 1_000_000)


def resume(base: Base | None, now_boot_id: str, now_boottime: int, now_wall: int) -> int:
    """The ledger time now, from the base stored last. Pure."""
    if base is None:
        return now_wall
    elapsed = now_boottime - base.boottime
    if base.boot_id and base.boot_id == now_boot_id and elapsed >= 0:
        return base.ledger + elapsed
    return max(now_wall, base.ledger)


class LedgerClock:
    """Ledger time for a running daemon."""

    def __init__(self, base: Base | None = None) -> None:
        self._boot_id = boot_id()
        self._start = boottime()
        self._ledger = resume(base, self._boot_id, self._start, wall())
        self._last = self._ledger
        #: How far the wall clock was ahead of ledger time when it was last looked at, ms.
        self.lead = (base.wall - base.ledger) if base is not None else 0
        #: The last step of the wall clock, ms, and when it was noticed, ledger time; 0, 0: none.
        self.stepped = (0, 0)

    def now(self) -> int:
        """Ledger time in ms; never less than what was given before."""
        now = self._ledger + boottime() - self._start
        self._last = max(self._last, now)
        return self._last

    def base(self, now: int) -> Base:
        """What to store so that the clock can be resumed from ``now``."""
        return Base(self._boot_id, self._start + now - self._ledger, now, wall())

    def step(self) -> int:
        """By how many ms the wall clock was stepped since this was last asked; 0 for a difference within 2 s."""
        lead = wall() - self.now()
        moved, self.lead = lead - self.lead, lead
        # A clock that is slewed drifts away slowly; that is no step, however far it gets in the end.
        if abs(moved) <= STEP:
            return 0
        self.stepped = moved, self.now()
        return moved

    def wall_of(self, ledger: int) -> int:
        """The wall clock (ms) at ledger time ``ledger``, if the clock is right now."""
        return ledger + wall() - self.now()

    def local_time(self, ledger: int) -> str:
        """Ledger time as text for people: ``14:32 +0100``, with the date when it is more than 20 hours away."""
        return local_time(self.wall_of(ledger), wall())


def local_time(wall_ms: int, now_wall: int) -> str:
    """A wall time for people in the local zone; without the date when it is less than 20 hours from now."""
    # Rounded up to the minute: a time that is named must not be too early.
    moment = datetime.fromtimestamp(-(-wall_ms // 60_000) * 60).astimezone()
    return moment.strftime("%H:%M %z" if abs(wall_ms - now_wall) < 20 * 3_600_000 else "%Y-%m-%d %H:%M %z")


def stored_base(connection: sqlite3.Connection) -> Base | None:
    """The base in the database, or ``None`` in a fresh one."""
    row = connection.execute("SELECT boot_id, boottime, ledger, wall FROM ledger_state").fetchone()
    return Base(*row) if row else None


def ledger_now(connection: sqlite3.Connection) -> int:
    """The ledger time now (ms) as the daemon on this database sees it, whether or not it runs."""
    return resume(stored_base(connection), boot_id(), boottime(), wall())


def now_and_ahead(connection: sqlite3.Connection) -> tuple[int, int]:
    """The ledger time now (ms), and how far the wall clock is ahead of it (ms): the same each time it is asked."""
    now_boottime, now_wall = look()
    now = resume(stored_base(connection), boot_id(), now_boottime, now_wall)
    return now, now_wall - now


def wall_of(ledger: int, connection: sqlite3.Connection) -> int:
    """The wall clock (ms since 1970) at ledger time ``ledger``."""
    return ledger + now_and_ahead(connection)[1]
