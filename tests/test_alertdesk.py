"""The alerts' desk: what it does when the disk hangs or fails, a courier is slow, the configuration changes, and at the end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policyd import alertdesk as alertdesk_module
from policyd.alert import KINDS, Alert, Event
from policyd.alertbook import Channel
from policyd.alertdesk import AlertDesk
from policyd.alerts import Sent
from policyd.alertwatch import State
from policyd.store import alerts
from policyd.store.connect import open_for_daemon
from tests.dns import loops

MAIL = Channel("mail", frozenset(KINDS), 6 * 3_600_000)
SICK = State("store-sick", "database", True, {"why": "the disk is full"})
WELL = State("store-sick", "database", False, {})


class Disk:
    """A writer that does each job when the test says so."""

    def __init__(self, path: Path) -> None:
        self.connection = open_for_daemon(str(path))
        self.sick = ""
        self.hangs = False
        self.jobs: list[tuple[Callable[[Any], Any], Callable[[Any], None]]] = []

    def do(self, job: Callable[[Any], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((job, done))
        if not self.hangs:
            self.work()

    def work(self) -> None:
        jobs, self.jobs = self.jobs, []
        loop = asyncio.get_running_loop()
        for job, done in jobs:
            loop.call_soon(done, None if self.sick else job(self.connection))


class Place:
    """A desk with a channel, a clock that the test turns, and what arrived."""

    def __init__(self, path: Path) -> None:
        self.disk = Disk(path)
        self.now = 1_000_000
        self.states: list[State] = []
        self.arrived: list[Alert] = []
        self.answer = Sent()
        self.gate = threading.Event()
        self.gate.set()
        self.desk = AlertDesk(
            asyncio.get_running_loop(), self.disk, lambda: self.now, lambda: self.now, lambda: self.states
        )
        self.configure("one")

    def configure(self, mark: str) -> None:
        self.desk.configure({MAIL: (mark, self.deliver)})

    def deliver(self, alert: Alert) -> Sent:
        self.gate.wait(10)
        self.arrived.append(alert)
        return self.answer

    def happens(self, subject: str, kind: str = "detect") -> None:
        alerts.put_event(self.disk.connection, Event(0, self.now, self.now, kind, subject, False, {}))

    async def tick(self, seconds: int = 1) -> None:
        """A second passes."""
        self.now += seconds * 1000
        self.desk._tick()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            # Threads make it true, which know no event of the loop's.
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def on_disk(self) -> dict[str, str]:
        return dict(self.disk.connection.execute("SELECT subject, state FROM alert"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alertdesk_module, "PACE", 0.0)
    monkeypatch.setattr(alertdesk_module, "LOOK", 3600.0)


def run(test: Callable[[Place], Any], path: Path) -> None:
    async def in_loop() -> None:
        place = Place(path / "policyd.db")
        try:
            await test(place)
        finally:
            place.gate.set()
            await place.desk.stop()
            place.disk.connection.close()

    loops.run("asyncio", in_loop)


def test_from_the_event_to_the_acknowledgement(tmp_path: Path) -> None:
    """It is on disk before it is sent, and that it was taken is on disk too."""

    async def test(place: Place) -> None:
        place.gate.clear()
        place.happens("alice")
        await place.tick()
        assert place.on_disk() == {"alice": "waits"}
        place.gate.set()
        await place.until(lambda: place.on_disk() == {"alice": "sent"})
        await place.tick()
        assert len(place.arrived) == 1

    run(test, tmp_path)


def test_a_disk_that_hangs_is_told_of_from_memory(tmp_path: Path) -> None:
    """Neither sick nor well: the writer does not come back. That is told without it; nothing twice when it does come back."""

    async def test(place: Place) -> None:
        await place.tick()
        place.disk.hangs = True
        place.happens("alice")
        await place.tick()
        assert not place.desk.hangs
        await place.tick(11)
        assert place.desk.hangs
        place.states = [SICK]
        await place.tick()
        await place.tick()
        await place.until(lambda: place.arrived)
        assert [each.kind for each in place.arrived] == ["store-sick"]
        place.disk.hangs = False
        place.disk.work()
        await place.until(lambda: place.on_disk() == {"alice": "sent", "database": "sent"})
        assert not place.desk.hangs
        place.states = [WELL]
        await place.tick()
        await place.until(lambda: len(place.arrived) == 3)
        assert [(each.kind, each.resolved) for each in place.arrived] == [
            ("store-sick", False),
            ("detect", False),
            ("store-sick", True),
        ]

    run(test, tmp_path)


def test_an_exchange_that_fails_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The database falls sick with the very job: what was in hand is told from memory, and written when it is well."""

    async def test(place: Place) -> None:
        await place.tick()
        place.states = [SICK]
        await place.tick()
        place.disk.hangs = True
        await place.tick()
        place.disk.sick, place.disk.hangs = "the disk is full", False
        place.disk.work()
        await place.until(lambda: place.arrived)
        await place.tick()
        place.disk.sick = ""
        await place.tick()
        await place.until(lambda: place.on_disk() == {"database": "sent"})
        assert len(place.arrived) == 1
        assert place.disk.connection.execute("SELECT count(*) FROM event").fetchone() == (0,)

    run(test, tmp_path)


def test_another_database_in_its_place(tmp_path: Path) -> None:
    """What waits is written into it, and its events, counted from 1 again, are told."""

    async def test(place: Place) -> None:
        place.answer = Sent("refused")
        for number in range(3):
            place.happens(f"user{number}")
        await place.tick()
        await place.until(lambda: place.arrived)
        await place.settle()
        place.disk.connection.close()
        place.disk.connection = open_for_daemon(str(tmp_path / "another.db"))
        place.desk.replaced()
        place.happens("new")
        await place.tick()
        await place.tick()
        assert place.on_disk() == {"user0": "waits", "user1": "waits", "user2": "waits", "new": "waits"}

    run(test, tmp_path)


def test_a_reload_while_a_courier_is_on_its_way(tmp_path: Path) -> None:
    """The new channel does not send what the old one has in hand; what comes of that counts."""

    async def test(place: Place) -> None:
        place.gate.clear()
        place.happens("alice")
        await place.tick()
        await place.until(lambda: place.desk._in_hand)
        place.configure("two")
        await place.tick()
        await place.tick()
        place.gate.set()
        await place.until(lambda: place.on_disk() == {"alice": "sent"})
        place.happens("bob")
        await place.tick()
        await place.until(lambda: place.on_disk() == {"alice": "sent", "bob": "sent"})
        assert [each.subject for each in place.arrived] == ["alice", "bob"]

    run(test, tmp_path)


def test_the_end_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    """What a channel has taken while policyd ends is on disk before it has ended."""

    async def test(place: Place) -> None:
        place.gate.clear()
        place.happens("alice")
        place.happens("bob")
        await place.tick()
        await place.until(lambda: place.desk._in_hand)
        ending = asyncio.get_running_loop().create_task(place.desk.stop())
        await place.settle()
        place.gate.set()
        await ending
        assert sorted(place.on_disk().values()) == ["sent", "waits"]
        assert len(place.arrived) == 1

    run(test, tmp_path)


def test_a_flood_does_not_hold_the_loop(tmp_path: Path) -> None:
    """Ten thousand events are taken in turns, told together, and all of them counted."""

    async def test(place: Place) -> None:
        rows = [(1, 1, "detect", f"user{number}", 0, "{}") for number in range(10_000)]
        connection: sqlite3.Connection = place.disk.connection
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        connection.execute("COMMIT")
        await place.tick()
        await place.until(
            lambda: connection.execute("SELECT event FROM alert_cursor").fetchone()[0] == 10_000
        )
        assert connection.execute("SELECT sum(count) FROM alert").fetchone() == (10_000,)
        assert len(place.desk.book.waiting) <= 11

    run(test, tmp_path)
