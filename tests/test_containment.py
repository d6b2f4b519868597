"""One unexpected failure stays where it happens: no thread ends, no deadline is lost, no memory grows, no count stands alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from policyd.errors import ConfigError
from policyd.opinion import Opinion
from policyd.session import Session
from policyd.store import connect as connect_module
from policyd.store import instances as instances_module
from policyd.store import sturdy as sturdy_module
from policyd.store.connect import open_for_admin
from policyd.wire import MAX_REQUEST
from tests.fakes import PATIENCE, Disk, Store, ask, ban_rule, engine, from_outside, quota_rule, says
from tests.store.test_writer import ALICE, ban_alice, healed, locked


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sick store is tried again with each batch, so that no test has to wait."""
    monkeypatch.setattr(sturdy_module, "RETRY", 0.0)
    monkeypatch.setattr(connect_module, "DAEMON_BUSY", 1)


class QuietTransport:
    """A peer that reads nothing."""

    def __init__(self) -> None:
        self.paused = 0

    def write(self, data: bytes) -> None:
        """Nobody takes it."""

    def close(self) -> None:
        """Nothing to do."""

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        """Nothing to do."""


class Unasked:
    """A desk that must not be asked."""

    def take(self, *arguments: object) -> None:
        raise AssertionError("a peer that reads no answers must not be given more")


def test_a_peer_that_reads_nothing_is_not_buffered_without_bound() -> None:
    """Reading stops at one request's size, also while nothing is being decided."""
    transport = QuietTransport()
    session = Session(Unasked(), transport, "l", "", "peer")  # type: ignore[arg-type]
    session.writable(False)
    for _ in range(2 * MAX_REQUEST // 1000):
        session.data_received(b"a=b\n" * 250)
    assert transport.paused == 1


def test_a_change_that_is_none_stops_nothing(tmp_path: Path) -> None:
    """A garbled row of the change table: the tables themselves say what holds, and the writer goes on."""
    path = tmp_path / "policyd.db"
    with Store(path, engine(ban_rule(), quota_rule("100 messages per 1h"))) as store:
        assert store.settled(ask()).verdict == "pass"
        with open_for_admin(str(path)) as connection:
            connection.execute("INSERT INTO change (tbl, key) VALUES ('ban', 'no json')")
        ban_alice(path)
        assert store.settled(ask()).by == "bans"
        assert store.settled(from_outside()).verdict == "pass"
        assert not store.writer.sick


def test_a_defect_in_upkeep_does_not_end_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a step of upkeep raises, requests are decided and counted on."""
    path = tmp_path / "policyd.db"
    failed = []

    def broken(*arguments: object, **options: object) -> bool:
        failed.append(arguments)
        raise KeyError("a defect")

    monkeypatch.setattr(sturdy_module.Upkeep, "step", broken)
    with Store(path, engine(quota_rule("100 messages per 1h"))) as store:
        for _ in range(3):
            assert store.settled(ask()).verdict == "pass"
        assert failed
        assert store.writer.alive()
    assert Disk(path).used("messages/external") == 3


def test_a_settlement_that_fails_late_counts_nothing(tmp_path: Path) -> None:
    """All or nothing: a check with a reason that is no text costs its request the decision, not the account a count."""
    path = tmp_path / "policyd.db"
    sloppy = says(lambda request: Opinion(reason=object()))  # type: ignore[arg-type]
    with Store(path, engine(quota_rule("100 messages per 1h"), sloppy)) as store:
        assert store.decide(ask()) == [None]
    assert Disk(path).all_used() == {}
    assert Disk(path).verdicts() == []


def test_memory_stays_bounded_while_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backlog full for days, what is remembered of transactions does not grow with the mail."""
    monkeypatch.setattr(instances_module, "TRANSACTIONS", 50)
    path = tmp_path / "policyd.db"
    with Store(path, engine(quota_rule("1000 messages per 1h")), backlog=10) as store:
        store.settled(ask())
        with locked(path):
            for _ in range(30):
                store.decide(*[from_outside() for _ in range(10)])
                store.decide(*[ask() for _ in range(10)])
            held = store.writer.ledger._ledger.instances
            assert len(held._held) <= 50 + 10 + 10
            assert held._decisions == sum(len(each) for each in held._held.values())
        for _ in range(200):
            store.decide(from_outside())
            if not store.writer.sick:
                break
        assert not store.writer.sick


def test_a_removed_database_is_noticed_and_bans_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into a file without a name is lost at the next start: a new one is begun with what is known."""
    monkeypatch.setattr(sturdy_module, "LOOK", 0.0)
    path = tmp_path / "policyd.db"
    with Store(path, engine(ban_rule(), quota_rule("100 messages per 1h"))) as store:
        for _ in range(4):
            assert store.settled(ask(sasl_username="bert")).verdict == "pass"
        ban_alice(path)
        assert store.settled(ask()).by == "bans"
        # The file itself last: as soon as it is gone, others take the place of all three.
        for suffix in ("-wal", "-shm", ""):
            os.unlink(f"{path}{suffix}")
        until = time.monotonic() + PATIENCE
        while not path.exists() and time.monotonic() < until:
            store.settled(from_outside())
        healed(store)
        assert store.settled(ask()).by == "bans"
        assert store.settled(ask(sasl_username="bert")).verdict == "pass"
    disk = Disk(path)
    assert disk.query("SELECT value FROM ban") == [(ALICE,)]
    assert disk.used("messages/external", "bert@example.org") == 5


def test_a_removed_log_is_noticed_and_what_is_in_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it all that was answered since the last checkpoint would be gone with the next kill -9."""
    monkeypatch.setattr(sturdy_module, "LOOK", 0.0)
    path = tmp_path / "policyd.db"
    log = Path(f"{path}-wal")
    with Store(path, engine(ban_rule(), quota_rule("100 messages per 1h"))) as store:
        for _ in range(4):
            assert store.settled(ask(sasl_username="bert")).verdict == "pass"
        wait_until(lambda: store.writer.ledger._log is not None)
        log.unlink()
        wait_until(log.exists)
        assert store.settled(ask(sasl_username="bert")).verdict == "pass"
        # What anybody else sees, while it runs.
        disk = Disk(path)
        assert disk.used("messages/external", "bert@example.org") == 5
        ban_alice(path)
        assert store.settled(ask()).by == "bans"
        assert not store.writer.sick
    assert [found.name for found in tmp_path.glob("*.damaged-*")] == []


def wait_until(true: Callable[[], bool]) -> None:
    """Look until it is so."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_opinion_that_is_none_fails_its_own_check_only() -> None:
    """A check that answers with a text instead of an answer is a failed check, not a failed chain."""
    from tests.fakes import FakeLedger

    sloppy = says(lambda request: Opinion(answer="DUNNO"))  # type: ignore[arg-type]
    ledger = FakeLedger(engine(sloppy, quota_rule("1 messages per 1h")))
    assert ledger.decide(ask()).verdict == "pass"
    assert ledger.decide(ask()).verdict == "refuse"


def test_a_check_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    """Whatever a check's constructor raises, the admin gets its place and no traceback."""
    from policyd.checks import options_of
    from policyd.config import load
    from policyd.service import build_engine

    module = tmp_path / "brokencheck.py"
    module.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Options:\n    pass\n"
        "class Check:\n    stages = frozenset()\n    steadfast = False\n    needs = {}\n"
        "    def __init__(self, options, context):\n        raise TypeError('a defect')\n"
        "    async def check(self, request, now, steering, inquiry):\n        return None\n"
    )
    config = tmp_path / "policyd.toml"
    config.write_text('[[check]]\nuse = "brokenpackage.brokencheck"\nname = "broken"\n')
    (tmp_path / "brokenpackage").mkdir()
    (tmp_path / "brokenpackage" / "__init__.py").write_text("")
    module.rename(tmp_path / "brokenpackage" / "brokencheck.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(ConfigError) as caught:
            build_engine(load(str(config), options_of))
    assert "TypeError: a defect" in str(caught.value)
    assert f"{config}:1" in str(caught.value)


def test_a_start_while_the_database_is_locked_decides_at_once(tmp_path: Path) -> None:
    """A restart in the middle of somebody's long transaction: known bans hold, mail is counted, and it heals."""
    path = tmp_path / "policyd.db"
    chain = engine(ban_rule(), quota_rule("5 messages per 1h"))
    with Store(path, chain) as store:
        ban_alice(path)
        assert [store.settled(ask(sasl_username="bert")).verdict for _ in range(3)] == ["pass"] * 3
    with contextlib.ExitStack() as stack:
        with locked(path):
            store = stack.enter_context(Store(path, chain))
            assert store.settled(ask()).by == "bans"
            assert [store.settled(ask(sasl_username="bert")).verdict for _ in range(3)] == [
                "pass",
                "pass",
                "refuse",
            ]
        for _ in range(100):
            store.settled(from_outside())
            if not store.writer.sick:
                break
        assert not store.writer.sick
        assert store.settled(ask(sasl_username="bert")).verdict == "refuse"
    assert Disk(path).used("messages/external", "bert@example.org") == 5
