"""Two troubles at once: damaged and full, upgraded and full, replaced under the daemon. Bans hold, and it heals by itself."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from policyd.store import migrate
from tests.system.asking import ALICE, Asker, policy
from tests.system.daemon import Policyd
from tests.system.test_store_trouble import (
    BANNED,
    LIMITS,
    SERVER,
    Witness,
    ban_mallory,
    fill,
    give_a_past,
    policyd,
    policyd_address,
    small_disk,
)
from tests.system.waiting import wait_for

#: Messages whose rows take more than the small disk, and more than half of it.
MORE_THAN_FITS, MORE_THAN_HALF = 8_000, 5_500

__all__ = ["policyd", "small_disk"]


def bans(policyd: Policyd) -> list[tuple[str]]:
    return policyd.query("SELECT value FROM ban WHERE kind = 'user' ORDER BY value")


def see_it_heal(policyd: Policyd, disk: Path, witness: Witness, *counts: int) -> None:
    """With room again it is well, knows the ban, and has counted what it let pass, each once."""
    (disk / "filler").unlink()
    policyd.wait_told("store-well: ")
    witness.look_around()
    assert bans(policyd) == [(BANNED,)]
    assert policyd.used(ALICE, "messages") in counts
    assert policyd.query("PRAGMA integrity_check") == [("ok",)]
    witness.asker.sock.close()
    policyd.stop()
    assert "are lost" not in policyd.told()
    assert "Traceback" not in policyd.told()


def test_damaged_at_a_start_on_a_full_disk(policyd: Policyd, small_disk: Path) -> None:
    """It starts all the same, with the bans that can be read; one file is kept aside, and each message is told once."""
    give_a_past(policyd, "ended")
    data = bytearray(policyd.database.read_bytes())
    # A page in the middle, and the one that the newest decisions are in: the tables of bans stay readable.
    connection = sqlite3.connect(f"file:{policyd.database}?immutable=1", uri=True)
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'ledger_state'").fetchone()[0]
    connection.close()
    data[(root - 1) * 4096 : root * 4096] = b"\xa5" * 4096
    policyd.database.write_bytes(data)
    fill(small_disk)
    policyd.start()
    witness = Witness(Asker(policyd_address(policyd)))
    witness.look_around()
    for _ in range(5):
        assert witness.send() == "DUNNO"
    until = time.monotonic() + 2
    wait_for(lambda: time.monotonic() > until, policyd.told)
    assert len(policyd.told().splitlines()) < 20, policyd.told()
    # Each message since, and what could be read of the counts before.
    see_it_heal(policyd, small_disk, witness, 5, 25)
    assert len([each for each in small_disk.glob("*.damaged*") if each.suffix.count("-") < 3]) <= 1


def test_a_first_start_on_a_full_disk_is_told_once(policyd: Policyd, small_disk: Path) -> None:
    """Nothing is damaged and nothing kept aside, however long the disk is full; with room there is a database, and as much
    in it as there is room for."""
    fill(small_disk)
    policyd.start()
    with Asker(policyd_address(policyd)) as asker:
        witness = Witness(asker)
        until = time.monotonic() + 3
        # More than the small disk has room for.
        while time.monotonic() < until or len(witness.passed) < MORE_THAN_FITS:
            assert witness.send() == "DUNNO"
        assert "damaged" not in policyd.told()
        assert len(policyd.told().splitlines()) < 12, policyd.told()
        assert not list(small_disk.glob("*.damaged*"))
        make_room(small_disk, 2_500_000)
        wait_for(lambda: policyd.database.exists() and on_disk(policyd) > 1_000, policyd.told)
        assert witness.send() == "DUNNO"
        assert "store-well: " not in policyd.told()
        assert policyd.used(ALICE, "messages") < len(witness.passed)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        policyd.wait_told("store-well: ")
        assert policyd.used(ALICE, "messages") == on_disk(policyd) == len(witness.passed)
    policyd.stop()


def make_room(small_disk: Path, octets: int) -> None:
    filler = small_disk / "filler"
    os.truncate(filler, filler.stat().st_size - octets)


def on_disk(policyd: Policyd) -> int:
    """Messages that a row tells of."""
    try:
        (row,) = policyd.query("SELECT count(DISTINCT instance) FROM decision")
    except sqlite3.Error:
        # It is being made.
        return 0
    return int(row[0])


def test_an_upgrade_that_finds_no_room(
    policyd: Policyd, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former schema cannot be decided with, but its bans can be read; then it is upgraded without a restart, and no
    number is given out twice."""
    first = migrate.steps()[:1]
    connection = sqlite3.connect(policyd.database, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "steps", lambda: first)
        migrate.migrate(connection, str(policyd.database))
    connection.execute("INSERT INTO ban VALUES ('user', ?, '', 'root', 0, 0)", (BANNED,))
    connection.execute("INSERT INTO ledger_state VALUES (1, 'b', 0, 0, 0, 700, 500)")
    connection.close()
    fill(small_disk)
    policyd.start()
    witness = Witness(Asker(policyd_address(policyd)))
    witness.look_around()
    for _ in range(5):
        assert witness.send() == "DUNNO"
    see_it_heal(policyd, small_disk, witness, 5)
    ids = [row[0] for row in policyd.query("SELECT id FROM decision ORDER BY id")]
    assert ids[0] == 501
    assert len(ids) == len(set(ids))


def test_what_waits_may_take_more_than_half_the_disk(policyd: Policyd, small_disk: Path) -> None:
    """On its way into the database all of it stands in the write-ahead log, too: a log as long as the disk could not be
    copied into the database any more, and policyd would stay in memory for good."""
    fill(small_disk)
    policyd.start()
    with Asker(policyd_address(policyd)) as asker:
        witness = Witness(asker)
        for _ in range(MORE_THAN_HALF):
            assert witness.send() == "DUNNO"
        (small_disk / "filler").unlink()
        policyd.wait_told("store-well: ")
        wait_for(lambda: on_disk(policyd) == MORE_THAN_HALF, policyd.told)
        assert policyd.database.stat().st_size > 3 << 20
    policyd.stop()


def test_damaged_and_full_while_it_runs(policyd: Policyd, small_disk: Path) -> None:
    """No half of a new database is taken for all that is known: the bans stay, and each message is told once."""
    give_a_past(policyd, "ended")
    policyd.start()
    witness = Witness(Asker(policyd_address(policyd)))
    witness.send()
    policyd.ctl("ban", "sender", "somebody@example.net", "--force")
    for suffix in ("", "-wal"):
        with open(f"{policyd.database}{suffix}", "r+b") as file:
            file.truncate(0)
    fill(small_disk)
    wait_for(lambda: witness.send() and "cannot be " in policyd.told(), policyd.told)
    until = time.monotonic() + 3
    # At the pace of a wait: what it says of it must not be more than the small disk takes.
    wait_for(lambda: witness.look_around() or time.monotonic() >= until, policyd.told)
    assert len(policyd.told().splitlines()) < 20, policyd.told()
    (small_disk / "filler").unlink()
    policyd.wait_told("store-well: ")
    witness.look_around()
    assert bans(policyd) == [(BANNED,)]
    witness.asker.sock.close()
    policyd.stop()


def test_replaced_while_it_runs(tmp_path: Path) -> None:
    """A copy is put in its place by hand: the former one's log is not played into it, and what the copy says holds."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address, limits=LIMITS, server=SERVER))
    with policyd, Asker(address) as asker:
        witness = Witness(asker)
        for _ in range(20):
            witness.send()
        ban_mallory(policyd, witness)
        policyd.ctl("db", "backup", str(tmp_path / "copy.db"))
        shutil.copy(tmp_path / "copy.db", tmp_path / "new.db")
        for number in range(3000):
            asker.ask(user=f"user{number}@example.org")
        other = sqlite3.connect(policyd.database)
        other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        other.close()
        for number in range(50):
            asker.ask(user=f"other{number}@example.org")
        os.rename(tmp_path / "new.db", policyd.database)
        # Whether or not policyd has noticed yet: what policyctl says it did is done.
        policyd.ctl("ban", "user", "eve@example.org", "--force")
        policyd.wait_told("store-well: ")
        assert asker.ask(user="eve@example.org").startswith("550 ")
        known = policyd.used(ALICE, "messages")
        assert known == 20
        for number in range(3000):
            assert asker.ask(user=f"third{number}@example.org") == "DUNNO"
        assert witness.send() == "DUNNO"
        assert policyd.used(ALICE, "messages") == 21
        witness.look_around()
        assert policyd.query("PRAGMA integrity_check") == [("ok",)]
        assert "damaged" not in policyd.told()
        assert "store-replaced: " in policyd.told()
    assert policyd.query("PRAGMA integrity_check") == [("ok",)]
