"""A damaged database is moved aside as it is, and what the admin had set goes into the new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.errors import StoreRefused
from policyd.steering import CheckMode, Entry, Grant, SenderRight, Steering, UserLimit
from policyd.store import aside
from policyd.store.connect import open_for_daemon
from policyd.store.steering_sync import SteeringMirror
from policyd.units import DAY, HOUR

ROWS = {
    "ban": Entry("user", "a@example.org", "r", "root", 1, 0),
    "allow": Entry("client", "192.0.2.0/24", "r", "root", 1, 9),
    "user_limit": UserLimit("a@example.org", "messages", HOUR, -1, "r", "root", 1, 0),
    "user_grant": Grant(7, "a@example.org", "bytes", 5, "r", "root", 1, DAY),
    "check_mode": CheckMode("*", "shadow", "r", "root", 1, 0),
    "sender_right": SenderRight("a@example.org", "@example.net", "r", "root", 1, 0),
    "greylist_allow": Entry("domain", "example.net", "r", "root", 1, DAY),
}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_daemon(str(tmp_path / "fresh.db"))
    yield connection
    connection.close()


def known() -> Steering:
    steering = Steering()
    for table, row in ROWS.items():
        steering.put(table, row)
    return steering


def filled(path: Path) -> None:
    connection = open_for_daemon(str(path))
    aside.restore_steering(connection, "", known())
    connection.close()


def held(connection: sqlite3.Connection) -> dict[str, list[object]]:
    mirror = SteeringMirror(connection)
    mirror.load()
    return {table: list(mirror.steering.rows(table)) for table in ROWS}


def test_everything_that_belongs_to_it_is_moved_byte_for_byte(tmp_path: Path) -> None:
    """And nothing else."""
    for name in ("policyd.db", "policyd.db-wal", "policyd.db-shm", "policyd.db.write-lock", "other.db"):
        (tmp_path / name).write_text(name)
    target = Path(aside.move(str(tmp_path / "policyd.db")))
    assert target.name.startswith("policyd.db.damaged-")
    for suffix in ("", "-wal", "-shm"):
        assert Path(f"{target}{suffix}").read_text() == f"policyd.db{suffix}"
    assert {p.name for p in tmp_path.iterdir() if "damaged" not in p.name} == {
        "policyd.db.write-lock",
        "other.db",
    }


def test_nothing_that_was_kept_before_is_overwritten(tmp_path: Path) -> None:
    """Damaged again within the same second."""
    targets = set()
    for turn in range(4):
        (tmp_path / "policyd.db").write_text(str(turn))
        targets.add(aside.move(str(tmp_path / "policyd.db")))
    assert sorted(Path(target).read_text() for target in targets) == ["0", "1", "2", "3"]


def test_what_cannot_be_moved_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, and it stays."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "policyd.db").write_text("x")
    monkeypatch.setattr(aside.os, "rename", refuse)
    with pytest.raises(StoreRefused, match="is damaged and cannot be moved aside: Permission denied"):
        aside.move(str(tmp_path / "policyd.db"))
    assert (tmp_path / "policyd.db").read_text() == "x"


def test_what_is_known_is_written(fresh: sqlite3.Connection) -> None:
    """Every steering table, ends and reasons kept."""
    assert aside.restore_steering(fresh, "", known()) == len(ROWS)
    assert held(fresh) == {table: [row] for table, row in ROWS.items()}


@pytest.mark.parametrize("name", ["old.db", "old 50%#?.db"])
def test_what_can_be_read_is_written(tmp_path: Path, fresh: sqlite3.Connection, name: str) -> None:
    """When nothing is known; and the damaged file is only read."""
    path = tmp_path / name
    filled(path)
    before = path.read_bytes()
    assert aside.restore_steering(fresh, str(path), None) == len(ROWS)
    assert held(fresh) == {table: [row] for table, row in ROWS.items()}
    assert path.read_bytes() == before


@pytest.mark.parametrize("table", ROWS)
def test_one_table_that_cannot_be_read_does_not_cost_the_others(
    tmp_path: Path, fresh: sqlite3.Connection, table: str
) -> None:
    """Its page is noise."""
    path = tmp_path / "old.db"
    filled(path)
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    assert aside.restore_steering(fresh, str(path), None) == len(ROWS) - 1
    assert held(fresh) == {name: [row] if name != table else [] for name, row in ROWS.items()}


def test_a_row_that_no_table_takes_does_not_cost_the_others(
    tmp_path: Path, fresh: sqlite3.Connection
) -> None:
    """Damage may leave any value: a kind that does not exist, text for a number."""
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE ban (kind, value, reason, author, created_at, expires_at)")
    rows = [
        ("user", "a@example.org", "", "root", 0, 0),
        ("usir", "b@example.org", "", "root", 0, 0),
        ("user", b"\xff\xfe", "", "root", 0, 0),
        ("user", "c@example.org", "", "root", "soon", 0),
        ("user", None, "", "root", 0, 0),
        ("user", "d@example.org", "", "root", 0, 0),
    ]
    connection.executemany("INSERT INTO ban VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.execute("INSERT INTO ban VALUES ('user', CAST(x'80' AS TEXT), '', 'root', 0, 0)")
    connection.commit()
    connection.close()
    assert aside.restore_steering(fresh, str(path), None) == 3
    assert [row.value for row in held(fresh)["ban"]] == ["a@example.org", "d@example.org", "\\x80"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", [b"", b"no database at all\n" * 999, b"\0" * 8192])
def test_what_is_no_database_gives_nothing(tmp_path: Path, fresh: sqlite3.Connection, content: bytes) -> None:
    """And no error."""
    path = tmp_path / "old.db"
    path.write_bytes(content)
    assert aside.restore_steering(fresh, str(path), None) == 0
    assert path.read_bytes() == content


def test_an_interrupted_restore_leaves_nothing_half(
    fresh: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All or nothing; the next attempt finds an empty table."""
    fresh.execute("DROP TABLE user_grant")
    with pytest.raises(sqlite3.Error):
        aside.restore_steering(fresh, "", known())
    assert fresh.execute("SELECT * FROM ban").fetchall() == []
    assert not fresh.in_transaction
