"""Ledger time: elapsed time on a stored base. Steps of the wall clock and reboots move no window and end no ban early."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.steering import Entry
from policyd.store import admin, clock
from policyd.store.clock import Base, LedgerClock, ledger_now, local_time, resume, stored_base, wall_of
from policyd.store.connect import open_for_admin, open_for_daemon
from policyd.units import DAY, HOUR, MINUTE, SECOND
from tests.fakes import Disk, Store, ask, ban_rule, engine, quota_rule

WALL = 1_800_000_000_000
ALICE = "alice@example.org"


@dataclass
class Machine:
    """A machine's clocks: the test turns them."""

    boot: str = "boot-1"
    boottime: int = 5_000_000
    wall: int = WALL

    def pass_time(self, ms: int) -> None:
        self.boottime += ms
        self.wall += ms

    def step(self, ms: int) -> None:
        self.wall += ms

    def reboot(self, down: int, wall_step: int = 0) -> None:
        self.boot += "+"
        self.boottime = 10_000
        self.wall += down + wall_step


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """The clocks that policyd reads."""
    machine = Machine()
    monkeypatch.setattr(clock, "boot_id", lambda: machine.boot)
    monkeypatch.setattr(clock, "boottime", lambda: machine.boottime)
    monkeypatch.setattr(clock, "wall", lambda: machine.wall)
    monkeypatch.setattr(clock, "look", lambda: (machine.boottime, machine.wall))
    return machine


def test_a_fresh_database_begins_with_the_wall_clock(machine: Machine) -> None:
    """There is nothing else."""
    assert LedgerClock().now() == WALL


@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY])
def test_a_step_of_the_wall_clock_does_not_move_ledger_time(machine: Machine, step: int) -> None:
    """While running, across a restart, and both."""
    running = LedgerClock()
    machine.pass_time(MINUTE)
    machine.step(step)
    assert running.now() == WALL + MINUTE
    base = running.base(running.now())
    machine.pass_time(HOUR)
    machine.step(-2 * step)
    assert LedgerClock(base).now() == WALL + MINUTE + HOUR
    assert resume(base, machine.boot, machine.boottime, machine.wall) == WALL + MINUTE + HOUR


@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY])
def test_a_step_is_told_once_with_its_size(machine: Machine, step: int) -> None:
    """Also one that came between two runs; a clock that is slewed is no step."""
    running = LedgerClock()
    assert running.step() == 0
    machine.step(1_500)
    assert running.step() == 0
    machine.step(step)
    assert running.step() == step
    assert running.step() == 0
    base = running.base(running.now())
    machine.step(-step)
    again = LedgerClock(base)
    assert again.step() == -step
    assert again.step() == 0


def test_after_a_reboot_ledger_time_goes_on_from_the_larger(machine: Machine) -> None:
    """Of wall clock and what was stored: a machine that wakes in 1970 does not freeze, nor give free quota."""
    base = Base(machine.boot, machine.boottime, WALL, WALL)
    machine.reboot(down=HOUR)
    assert LedgerClock(base).now() == WALL + HOUR
    machine.reboot(down=0, wall_step=-machine.wall)
    broken = LedgerClock(base)
    assert broken.now() == WALL
    machine.pass_time(MINUTE)
    assert broken.now() == WALL + MINUTE


def test_without_a_boot_id_every_start_counts_as_a_reboot(machine: Machine) -> None:
    """Elapsed time cannot be told then."""
    machine.boot = ""
    base = Base("", 1_000, WALL, WALL)
    assert LedgerClock(base).now() == WALL


def test_a_boottime_before_the_stored_one_is_another_boot(machine: Machine) -> None:
    """A copied database, a restored backup of a virtual machine: the same id, and less time."""
    base = Base(machine.boot, machine.boottime + HOUR, WALL + HOUR, WALL + HOUR)
    assert LedgerClock(base).now() == WALL + HOUR


events = st.lists(
    st.tuples(
        st.sampled_from(("pass", "step", "reboot", "restart", "look")),
        st.integers(0, 2 * DAY),
        st.integers(-2 * DAY, 2 * DAY),
    ),
    max_size=30,
)


@given(events)
def test_whatever_the_clocks_do_ledger_time_never_goes_back(events: list[tuple[str, int, int]]) -> None:
    """And within one boot it is exactly the elapsed time."""
    machine = Machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "boot_id", lambda: machine.boot)
        patch.setattr(clock, "boottime", lambda: machine.boottime)
        patch.setattr(clock, "wall", lambda: machine.wall)
        running = LedgerClock()
        last = running.now()
        for kind, time, step in events:
            base = running.base(running.now())
            expected = last
            if kind == "pass":
                machine.pass_time(time)
                expected += time
            elif kind == "step":
                machine.step(step)
            elif kind == "reboot":
                machine.reboot(time, step)
                running = LedgerClock(base)
                expected = max(last, machine.wall)
            elif kind == "restart":
                machine.pass_time(time)
                running = LedgerClock(base)
                expected += time
            assert running.now() == expected
            last = expected
            assert running.wall_of(last) == machine.wall


# --- through the writer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY])
def test_no_free_quota_and_nobody_is_frozen(tmp_path: Path, machine: Machine, step: int) -> None:
    """A limit an hour: neither a step nor a restart after a step gives room before the hour is over, and then there is room."""
    path = tmp_path / "policyd.db"
    rules = (quota_rule("2 messages per 1h"),)
    with Store(path, engine(*rules)) as store:
        assert [store.settled(ask()).verdict for _ in range(3)] == ["pass", "pass", "refuse"]
        machine.step(step)
        assert store.settled(ask()).verdict == "refuse"
        machine.pass_time(HOUR - MINUTE)
        assert store.settled(ask()).verdict == "refuse"
    machine.step(-2 * step)
    with Store(path, engine(*rules)) as store:
        assert store.settled(ask()).verdict == "refuse"
        machine.pass_time(2 * MINUTE)
        assert store.settled(ask()).verdict == "pass"


@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY])
def test_no_ban_ends_early_and_none_lasts_longer(tmp_path: Path, machine: Machine, step: int) -> None:
    """policyctl and the daemon reckon with the same clock."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(ban_rule())) as store:
        store.settled(ask())
        machine.step(step)
        with open_for_admin(str(path)) as connection, admin.change(connection, "root", "spam") as change:
            change.put("ban", Entry("user", ALICE, "spam", "root", change.now, change.expires(HOUR)))
        assert store.settled(ask()).verdict == "refuse"
        machine.step(-step)
        machine.pass_time(HOUR - SECOND)
        assert store.settled(ask()).verdict == "refuse"
    machine.step(step)
    with Store(path, engine(ban_rule())) as store:
        assert store.settled(ask()).verdict == "refuse"
        machine.pass_time(SECOND)
        assert store.settled(ask()).verdict == "pass"


@pytest.mark.parametrize("step", [-DAY, DAY])
def test_a_ban_set_before_the_first_mail_lasts_as_long_as_any(
    tmp_path: Path, machine: Machine, step: int
) -> None:
    """A new daemon has said where ledger time stands before anybody reckons with it."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(ban_rule())) as store:
        machine.step(step)
        with open_for_admin(str(path)) as connection:
            assert ledger_now(connection) == store.writer.clock.now()


def test_the_base_is_on_disk_with_the_batch(tmp_path: Path, machine: Machine) -> None:
    """And read by whoever asks, daemon or not."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("9 messages per 1h"))) as store:
        store.settled(ask())
        machine.pass_time(MINUTE)
        machine.step(DAY)
        store.settled(ask())
    row = Disk(path).query("SELECT boot_id, boottime, ledger, wall FROM ledger_state")
    assert row == [("boot-1", machine.boottime, WALL + MINUTE, WALL + MINUTE + DAY)]
    machine.pass_time(MINUTE)
    connection = sqlite3.connect(path)
    try:
        assert stored_base(connection) == Base(*row[0])
        assert ledger_now(connection) == WALL + 2 * MINUTE
        assert wall_of(WALL, connection) == WALL + DAY
    finally:
        connection.close()


def test_a_fresh_database_has_no_base(tmp_path: Path) -> None:
    """Until somebody writes one."""
    connection = open_for_daemon(str(tmp_path / "policyd.db"))
    try:
        assert stored_base(connection) is None
    finally:
        connection.close()


def test_a_time_for_people_is_never_too_early() -> None:
    """Rounded up to the minute, with the date when it is far."""
    assert re.fullmatch(r"\d\d:\d\d [+-]\d{4}", local_time(WALL + HOUR, WALL))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}", local_time(WALL + DAY, WALL))
    minute = WALL // MINUTE * MINUTE
    assert local_time(minute + 1, WALL) == local_time(minute + MINUTE, WALL) != local_time(minute, WALL)


def test_the_machine_s_own_clocks() -> None:
    """Linux: a boot id, a time since boot that passes, a wall clock."""
    assert re.fullmatch(r"[0-9a-f-]{36}", clock.boot_id())
    assert 0 < clock.boottime() <= clock.boottime()
    assert clock.wall() > 1_600_000_000_000


@pytest.mark.parametrize("phase", [0, 300_000, 999_999])
def test_two_looks_find_the_clocks_equally_far_apart(monkeypatch: pytest.MonkeyPatch, phase: int) -> None:
    """A moment that is shown twice is shown as the same moment, however the two clocks' milliseconds fall."""
    passed = iter(range(0, 10**9, 370_001))
    moment = [0]

    def boottime_ns(which: int) -> int:
        moment[0] = next(passed)
        return 5 * 10**12 + moment[0]

    monkeypatch.setattr(time, "clock_gettime_ns", boottime_ns)
    monkeypatch.setattr(time, "time_ns", lambda: WALL * 10**6 + phase + moment[0] + 40)
    assert len({wall - boottime for boottime, wall in (clock.look() for _ in range(50))}) == 1


def test_no_boot_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel without one."""
    monkeypatch.setattr(clock, "BOOT_ID_FILE", tmp_path / "missing")
    assert clock.boot_id() == ""
