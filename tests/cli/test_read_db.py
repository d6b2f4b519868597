"""db: the database checked, copied, put back, pruned and made smaller, and never overwritten."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from policyd.store.locks import DaemonLock
from policyd.units import DAY
from tests.cli.conftest import Run
from tests.sample_database import Sample


def content(path: Path | str) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_backup_of_a_database_in_use_is_whole(sample: Sample, policyctl: Run, tmp_path: Path) -> None:
    """It holds what was committed, also what is in the WAL only, while the daemon holds the file."""
    for _ in range(5):
        sample.ask()
    before = content(sample.path)
    lock = DaemonLock(sample.path)
    try:
        ran = policyctl("db", "backup", str(tmp_path / "copy.db"))
    finally:
        lock.release()
    assert ran.code == 0
    assert content(tmp_path / "copy.db") == before
    assert policyctl("history", "database", "--json").json[0]["action"] == "db backup"
    assert os.stat(tmp_path / "copy.db").st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]


def test_a_backup_overwrites_nothing(sample: Sample, policyctl: Run, tmp_path: Path) -> None:
    """Neither a file nor what another backup left; and where it cannot be written nothing is left behind."""
    for name in ("copy.db", "other.db.part"):
        (tmp_path / name).write_text("mine")
        ran = policyctl("db", "backup", str(tmp_path / name.removesuffix(".part")))
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert (tmp_path / name).read_text() == "mine"
    assert policyctl("db", "backup", str(tmp_path / "no" / "such")).code == 1


def test_restore_brings_back_and_keeps_the_old_file(sample: Sample, policyctl: Run, tmp_path: Path) -> None:
    """What was there before stays beside it, with all that was committed, and no WAL of it is left to be played in."""
    sample.ask()
    at_backup = content(sample.path)
    assert policyctl("db", "backup", str(tmp_path / "copy.db")).code == 0
    sample.ask()
    later = content(sample.path)
    sample.close()
    found = policyctl("db", "restore", str(tmp_path / "copy.db"), "--json").json
    assert content(sample.path) == at_backup
    assert content(found["before"]) == later
    assert policyctl("db", "check").code == 0
    assert policyctl("log", "--json").json[0]["id"] == 1
    assert not list(tmp_path.glob("*.restoring*"))


def test_restore_refuses_while_the_daemon_runs(sample: Sample, policyctl: Run, tmp_path: Path) -> None:
    """Neither restore nor compact touches a database in use."""
    sample.ask()
    assert policyctl("db", "backup", str(tmp_path / "copy.db")).code == 0
    before = content(sample.path)
    lock = DaemonLock(sample.path)
    try:
        for arguments in (("restore", str(tmp_path / "copy.db")), ("compact",)):
            ran = policyctl("db", *arguments)
            assert (ran.code, ran.out) == (1, "")
            assert "policyd runs on" in ran.err
    finally:
        lock.release()
    assert content(sample.path) == before


@pytest.mark.parametrize("damage", ["pages", "text", "foreign", "newer", "itself", "missing"])
def test_restore_takes_only_a_sound_copy_of_ours(
    sample: Sample, policyctl: Run, tmp_path: Path, damage: str
) -> None:
    """A damaged, foreign or newer file is refused in one line, and nothing is changed."""
    for _ in range(50):
        sample.ask()
    copy = tmp_path / "copy.db"
    assert policyctl("db", "backup", str(copy)).code == 0
    before = content(sample.path)
    if damage == "pages":
        octets = bytearray(copy.read_bytes())
        octets[4096 * 4 :] = b"\xaa" * len(octets[4096 * 4 :])
        copy.write_bytes(octets)
    elif damage == "text":
        copy.write_text("hello\n" * 1000)
    elif damage == "foreign":
        copy.unlink()
        connection = sqlite3.connect(copy)
        connection.execute("CREATE TABLE x (y)")
        connection.close()
    elif damage == "newer":
        connection = sqlite3.connect(copy)
        connection.execute("PRAGMA user_version = 999")
        connection.close()
    elif damage == "itself":
        copy = Path(sample.path)
    else:
        copy = tmp_path / "none.db"
    ran = policyctl("db", "restore", str(copy))
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert content(sample.path) == before
    assert not list(tmp_path.glob("*restor*"))


def test_restore_onto_a_machine_without_a_database(sample: Sample, policyctl: Run, tmp_path: Path) -> None:
    """A new machine starts from the backup."""
    sample.ask()
    assert policyctl("db", "backup", str(tmp_path / "copy.db")).code == 0
    sample.close()
    for suffix in ("", "-wal", "-shm"):
        Path(sample.path + suffix).unlink(missing_ok=True)
    assert policyctl("db", "restore", str(tmp_path / "copy.db"), "--json").json["before"] is None
    assert policyctl("log", "--json").json[0]["id"] == 1


def test_root_leaves_files_that_the_daemon_can_open(
    policyctl: Run, config_path: Path, tmp_path: Path
) -> None:
    """The database stays its owner's after backup, restore and compact; a backup goes where only the caller may write."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        config = place / "policyd.toml"
        config.write_text(config_path.read_text().replace(str(tmp_path), name))
        place.chmod(0o755)
        config.chmod(0o644)
        sample = Sample(place / "policyd.db")
        sample.ask()
        sample.close()
        owner = (os.getuid(), os.getgid())
        if os.getuid() == 0:
            owner = (65534, 65534)
            for path in (place, *place.glob("policyd.db*")):
                os.chown(path, *owner)
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        for arguments in (
            ("backup", str(private / "copy.db")),
            ("restore", str(private / "copy.db")),
            ("compact",),
            ("prune",),
        ):
            ran = policyctl("--config", str(config), "db", *arguments)
            assert ran.code == 0, (arguments, ran.err)
        found = list(place.glob("policyd.db*"))
        assert len(found) >= 4
        for path in found:
            assert (path.stat().st_uid, path.stat().st_gid) == owner, path


def test_prune_drops_what_is_too_old(sample: Sample, policyctl: Run, tmp_path: Path) -> None:
    """By [keep] decisions; a dry run and a running daemon change nothing; counts stay."""
    sample.ask(200 * DAY)
    sample.next_partition(190 * DAY)
    sample.ask()
    assert policyctl("db", "prune", "--dry-run", "--json").json["decisions_due"] == 1
    lock = DaemonLock(sample.path)
    try:
        ran = policyctl("db", "prune")
        assert ran.code == 0
        assert "policyd runs" in ran.out
    finally:
        lock.release()
    assert len(policyctl("log", "--json").json) == 2
    assert policyctl("db", "prune", "--json").json["decisions_dropped"] == 1
    assert [row["id"] for row in policyctl("log", "--json").json] == [2]
    assert policyctl("quota", "show", "alice", "--json").json["limits"][0]["used"] == 1
    assert policyctl("db", "check").code == 0


def test_compact_gives_room_back(sample: Sample, policyctl: Run) -> None:
    """The file is smaller, and says the same."""
    for _ in range(300):
        sample.ask(recipient="", recipient_count="9")
    sample.connection.execute("DELETE FROM decision_1 WHERE id < 300")
    sample.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    before = sorted(content(sample.path))
    sample.close()
    found = policyctl("db", "compact", "--json").json
    assert found["after"] < found["before"]
    assert sorted(content(sample.path)) == before


def test_size_adds_up(sample: Sample, policyctl: Run) -> None:
    """Rows by kind, octets by table."""
    sample.ask()
    found = policyctl("db", "size", "--tables", "--json").json
    assert (found["decisions"], found["counters"], found["bans"]) == (1, 3, 0)
    assert found["tables"]["decision_1"] > 0
    assert "decisions" in policyctl("db", "size").out


def test_check_names_the_damage_and_fails(sample: Sample, policyctl: Run) -> None:
    """Exit code 1, what is wrong, and what to do."""
    sample.ask()
    assert policyctl("db", "check").out.endswith("sound\n")
    sample.connection.execute("UPDATE counter SET cells = x'0901'")
    ran = policyctl("db", "check", "--json")
    assert (ran.code, ran.json["sound"]) == (1, False)
    assert "db restore" in policyctl("db", "check").out


def test_a_question_in_sql_is_answered(sample: Sample, policyctl: Run) -> None:
    """The tables can be asked anything, for people and for programs."""
    sample.ask()
    found = policyctl(
        "db", "query", "SELECT user, verdict FROM decision ORDER BY id DESC LIMIT 1", "--json"
    ).json
    assert found == [{"user": "alice@example.org", "verdict": "pass"}]
    assert "alice@example.org" in policyctl("db", "query", "SELECT user FROM decision").out
    assert policyctl("db", "query", "SELECT user FROM decision WHERE 0").out == "no rows\n"


@pytest.mark.parametrize(
    "sql", ["DELETE FROM ban", "SELECT nothing", "", "INSERT INTO allow VALUES (1)", "ATTACH ':memory:' AS x"]
)
def test_a_question_that_changes_something_is_refused(sample: Sample, policyctl: Run, sql: str) -> None:
    """One line, exit code 1, and nothing is changed."""
    sample.ask()
    before = Path(sample.path).read_bytes()
    result = policyctl("db", "query", sql)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert Path(sample.path).read_bytes() == before
