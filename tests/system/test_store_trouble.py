"""A database in trouble stops no mail: disk full, locked, damaged. Known bans hold, counts go on, and it heals by itself."""

from __future__ import annotations

import random
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.asking import ALICE, RCPT, Asker, new_instance, policy
from tests.system.daemon import Policyd
from tests.system.waiting import wait_for

BANNED = "mallory@example.org"
#: Seconds; the issue's word is "within its deadline".
DEADLINE = 2.0
LIMITS = ["100000 messages per 1d"]
SERVER = f"deadline = '{DEADLINE:g}s'"


class Witness:
    """Asks in time, and remembers what was counted: each instance that passed, once."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker
        self.passed: set[str] = set()
        self.deferred: list[str] = []
        self.slowest = 0.0

    def _timed(self, stage: str, user: str, **given: object) -> str:
        begun = time.monotonic()
        answer = self.asker.ask(stage, user, **given)
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        assert took < DEADLINE, f"answered after {took:.2f} s: {answer}"
        return answer

    def send(self, instance: str = "") -> str:
        """One message of alice's."""
        instance = instance or new_instance()
        answer = self._timed("END-OF-MESSAGE", ALICE, instance=instance)
        if answer == "DUNNO":
            self.passed.add(instance)
        else:
            assert answer.startswith("451 4.3.0 "), answer
            self.deferred.append(instance)
        return answer

    def look_around(self) -> None:
        """Who is banned stays banned, mail from outside goes on."""
        assert self._timed(RCPT, BANNED).startswith("550 5.7.1 Sending is not permitted")
        assert self._timed("END-OF-MESSAGE", BANNED).startswith("550 5.7.1 Sending is not permitted")
        assert self._timed(RCPT, "") == "DUNNO"
        assert self._timed("END-OF-MESSAGE", "") == "DUNNO"


def well(policyd: Policyd, witness: Witness, times: int = 1) -> None:
    """It is on disk again without a restart, with each message counted once; what was deferred is sent again and passes."""
    policyd.wait_told("store-well", times)
    for instance in witness.deferred.copy():
        assert witness.send(instance) == "DUNNO"
    witness.deferred.clear()
    for instance in sorted(witness.passed)[:20]:
        assert witness.send(instance) == "DUNNO"
    witness.look_around()
    assert policyd.used(ALICE, "messages") == len(witness.passed)
    assert policyd.query("PRAGMA integrity_check") == [("ok",)]
    assert "Traceback" not in policyd.told()


def ban_mallory(policyd: Policyd, witness: Witness) -> None:
    """Ban, and see it hold."""
    policyd.ctl("ban", "user", BANNED, "--force")
    witness.look_around()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB of its own; needs root, as CI has it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=755", "policyd-test", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leave no octet free."""
    with open(disk / "filler", "ab", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while True:
                    filler.write(b"\0" * size)
            except OSError:
                continue


def until_sick(policyd: Policyd, witness: Witness, times: int) -> None:
    """Send until the store is in trouble."""

    def sick() -> bool:
        witness.send()
        return policyd.told().count("store-sick: ") >= times

    wait_for(sick, policyd.told)


def test_disk_full(tmp_path: Path, small_disk: Path) -> None:
    """Counted in memory up to the bound, then deferred; on disk again when there is room, twice over."""
    address = f"unix:{tmp_path}/sock"
    bound = 60
    policyd = Policyd(
        tmp_path,
        policy(address, limits=LIMITS, server=SERVER),
        database=small_disk / "policyd.db",
        store=f"memory_backlog = {bound}",
    )
    with policyd, Asker(address) as asker:
        witness = Witness(asker)
        for _ in range(20):
            witness.send()
        ban_mallory(policyd, witness)
        for again in (1, 2):
            fill(small_disk)
            until_sick(policyd, witness, policyd.told().count("store-sick: ") + 1)
            on_disk = policyd.query("SELECT count(DISTINCT instance) FROM decision WHERE user = ?", ALICE)[0][
                0
            ]
            assert len(witness.passed) > on_disk
            witness.look_around()
            # Asked again while there is room in memory: what passed passes, and counts nothing.
            assert [witness.send(each) for each in sorted(witness.passed)[-5:]] == ["DUNNO"] * 5
            for _ in range(bound):
                witness.send()
            assert witness.deferred, "more is kept in memory than the bound allows"
            assert len(witness.passed) - on_disk <= bound
            witness.look_around()
            (small_disk / "filler").unlink()
            well(policyd, witness, again)
    assert not list(small_disk.glob("*.damaged*"))


def read_only(disk: Path, how: str) -> None:
    """Mount it ``ro``, as the kernel does with a disk that fails, or ``rw`` again."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def start_in_trouble(policyd: Policyd, cause: str) -> Witness:
    """Start it; it says what is wrong, knows its bans and limits, counts in memory, and policyctl says what it can do."""
    policyd.start()
    assert re.search(rf"store-sick: .*{cause}; starting in memory", policyd.told()), policyd.told()
    witness = Witness(Asker(policyd_address(policyd)))
    witness.look_around()
    for _ in range(10):
        assert witness.send() == "DUNNO"
    assert BANNED in policyd.ctl("bans")
    assert policyd.used(ALICE, "messages") == 20
    refused = policyd.try_ctl("ban", "user", "late@example.org", "--force")
    assert refused.returncode == 1
    assert cause in refused.stderr, refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    return witness


def policyd_address(policyd: Policyd) -> str:
    """Its only listener."""
    return f"unix:{policyd.directory}/sock"


def healed_without_restart(policyd: Policyd, witness: Witness, before: Witness) -> None:
    """What was counted before the start, in trouble and since is there, each once, and bans can be made again."""
    policyd.wait_told("store-well: ")
    witness.passed |= before.passed
    witness.look_around()
    assert witness.send(min(before.passed)) == "DUNNO"
    assert policyd.used(ALICE, "messages") == len(witness.passed)
    policyd.ctl("ban", "user", "late@example.org", "--force")
    assert witness.asker.ask(user="late@example.org").startswith("550 ")
    assert policyd.query("PRAGMA integrity_check") == [("ok",)]
    assert not list(policyd.database.parent.glob("*.damaged*"))
    witness.asker.sock.close()
    policyd.stop()
    assert "are lost" not in policyd.told()
    assert "Traceback" not in policyd.told()
    ids = [row[0] for row in policyd.query("SELECT id FROM decision ORDER BY id")]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("before", ["ended", "killed"])
def test_start_on_a_full_disk(policyd: Policyd, small_disk: Path, before: str) -> None:
    """After an end in order, which leaves no file beside the database, and after kill -9, which leaves all of them."""
    witness = give_a_past(policyd, before)
    fill(small_disk)
    if before == "ended":
        in_trouble = start_in_trouble(policyd, "file system is full")
    else:
        # The files are there, so it can be opened; the first decision finds no room.
        policyd.start()
        in_trouble = Witness(Asker(policyd_address(policyd)))
        in_trouble.look_around()
        assert in_trouble.send() == "DUNNO"
        assert "file system is full; deciding in memory" in policyd.told()
    (small_disk / "filler").unlink()
    healed_without_restart(policyd, in_trouble, witness)


@pytest.mark.parametrize("before", ["ended", "killed"])
def test_start_on_a_read_only_file_system(policyd: Policyd, small_disk: Path, before: str) -> None:
    """What is in the write-ahead log counts too, and it is written as soon as it can be."""
    witness = give_a_past(policyd, before)
    read_only(small_disk, "ro")
    in_trouble = start_in_trouble(policyd, "mounted read-only")
    read_only(small_disk, "rw")
    healed_without_restart(policyd, in_trouble, witness)


@pytest.fixture
def policyd(tmp_path: Path, small_disk: Path) -> Iterator[Policyd]:
    """One that does not run yet, its database on the small disk; it is gone when the test is over, however that ends."""
    policyd = Policyd(
        tmp_path,
        policy(f"unix:{tmp_path}/sock", limits=LIMITS, server=SERVER),
        database=small_disk / "policyd.db",
        store="memory_backlog = 1000000",
    )
    yield policyd
    if policyd.runs:
        policyd.kill()


def give_a_past(policyd: Policyd, ended: str) -> Witness:
    """Run it for twenty messages and a ban."""
    policyd.start()
    with Asker(policyd_address(policyd)) as asker:
        witness = Witness(asker)
        for _ in range(20):
            witness.send()
        ban_mallory(policyd, witness)
    if ended == "ended":
        policyd.stop()
        assert not Path(f"{policyd.database}-wal").exists()
    else:
        policyd.kill()
        assert Path(f"{policyd.database}-wal").stat().st_size > 0
    return witness


def test_locked_by_another_process(tmp_path: Path) -> None:
    """Another process holds the database for 10 s: everything is answered in time and counted once."""
    address = f"unix:{tmp_path}/sock"
    # In 10 s this test asks more than the bound that holds by default.
    policyd = Policyd(
        tmp_path, policy(address, limits=LIMITS, server=SERVER), store="memory_backlog = 1000000"
    )
    with policyd, Asker(address) as asker:
        witness = Witness(asker)
        witness.send()
        ban_mallory(policyd, witness)
        other = sqlite3.connect(policyd.database, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        until = time.monotonic() + 10
        while time.monotonic() < until:
            assert witness.send() == "DUNNO"
            witness.look_around()
        assert "store-sick" in policyd.told()
        other.execute("ROLLBACK")
        other.close()
        well(policyd, witness)


def garble(policyd: Policyd) -> None:
    """Noise all over the database and its log."""
    noise = random.Random(7)
    for suffix in ("", "-wal"):
        path = Path(f"{policyd.database}{suffix}")
        with open(path, "r+b") as file:
            file.write(noise.randbytes(path.stat().st_size))


def cut(policyd: Policyd) -> None:
    """Nothing is left of either."""
    for suffix in ("", "-wal"):
        with open(f"{policyd.database}{suffix}", "r+b") as file:
            file.truncate(0)


@pytest.mark.parametrize("damage", [garble, cut])
def test_damaged_while_it_runs(tmp_path: Path, damage: Callable[[Policyd], None]) -> None:
    """The damaged file is kept aside as it was, the bans go over into the new one, and mail never stops."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=LIMITS, server=SERVER)) as policyd, Asker(address) as asker:
        witness = Witness(asker)
        for _ in range(50):
            witness.send()
        ban_mallory(policyd, witness)
        # A change by another makes the daemon look at the file again, which it may have in memory as a whole.
        policyd.ctl("ban", "sender", "somebody@example.net", "--force")
        damage(policyd)
        damaged = policyd.database.read_bytes()
        since = len(witness.passed)

        def replaced() -> bool:
            witness.send()
            witness.look_around()
            return "store-well" in policyd.told()

        wait_for(replaced, policyd.told)
        (aside,) = [
            each for each in tmp_path.glob("policyd.db.damaged-*") if not re.search(r"-(wal|shm)$", each.name)
        ]
        assert aside.read_bytes() == damaged
        assert policyd.told().count("store-damaged:") == 2
        # The damaged file's own counts may be lost; none is there twice, and none since then is missing.
        assert len(witness.passed) - since <= policyd.used(ALICE, "messages") <= len(witness.passed)
        assert policyd.query("SELECT value FROM ban WHERE kind = 'user'") == [(BANNED,)]
        witness.look_around()
        assert policyd.query("PRAGMA integrity_check") == [("ok",)]
        policyd.stop()
        policyd.start()
        assert "Traceback" not in policyd.told()


def text_file(path: Path) -> None:
    """Somebody's notes instead of a database."""
    path.write_text("this is no database\n" * 500)


def half(path: Path) -> None:
    """Cut off in the middle, as a copy on a full disk is."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 100])


def zeros(path: Path) -> None:
    """The length is right, the octets are lost, as after a power cut on a bad disk."""
    path.write_bytes(bytes(path.stat().st_size))


def random_pages(path: Path) -> None:
    """A few pages of noise, the first one among them."""
    noise, data = random.Random(3), bytearray(path.read_bytes())
    for page in (0, *noise.sample(range(1, len(data) // 4096), 3)):
        data[page * 4096 : page * 4096 + 4096] = noise.randbytes(4096)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [text_file, half, zeros, random_pages])
def test_damaged_at_the_start(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """It starts, answers and counts anew; the damaged file is kept aside, octet for octet."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address, limits=LIMITS, server=SERVER))
    with policyd, Asker(address) as asker:
        for _ in range(20):
            assert asker.ask() == "DUNNO"
    assert not Path(f"{policyd.database}-wal").exists()
    damage(policyd.database)
    damaged = policyd.database.read_bytes()
    with policyd, Asker(address) as asker:
        witness = Witness(asker)

        def replaced() -> bool:
            witness.send()
            return "store-damaged" in policyd.told()

        wait_for(replaced, policyd.told)
        (aside,) = [
            each for each in tmp_path.glob("policyd.db.damaged-*") if not re.search(r"-(wal|shm)$", each.name)
        ]
        assert aside.read_bytes() == damaged
        ban_mallory(policyd, witness)
        assert policyd.query("PRAGMA integrity_check") == [("ok",)]
        assert "Traceback" not in policyd.told()
