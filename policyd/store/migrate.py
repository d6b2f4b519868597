"""The schema: numbered SQL files, each applied once, the version recorded in the same transaction.

The version is SQLite's ``user_version``. Before an upgrade the database is copied aside. A newer schema is refused.
"""

from __future__ import annotations

import os
import re
import sqlite3
from importlib import resources
from pathlib import Path

from policyd.errors import StoreRefused

_NUMBERED = re.compile(r"(\d{4})_\w+\.sql", re.ASCII)


def steps() -> list[tuple[int, str]]:
    """Each schema file's number and text, in order."""
    found = []
    for entry in resources.files("policyd.store").joinpath("schema").iterdir():
        match = _NUMBERED.fullmatch(entry.name)
        if match:
            found.append((int(match[1]), entry.read_text(encoding="utf-8")))
    return sorted(found)


def newest() -> int:
    """The schema version of this policyd."""
    return steps()[-1][0]


def text(name: str) -> str:
    """The schema file ``name``, for tables that are made as they are needed."""
    return resources.files("policyd.store").joinpath("schema", name).read_text(encoding="utf-8")


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version of the database; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_version(connection: sqlite3.Connection, path: str) -> None:
    """
    :raises StoreRefused: the database is of another schema version than this policyd.
    """
    have, want = version_of(connection), newest()
    if have > want:
        raise StoreRefused(
            f"{path} was written by a newer policyd (schema {have}, this one knows {want}); "
            "install that version again, or restore the backup made before the upgrade"
        )
    if have < want:
        raise StoreRefused(
            f"{path} is of schema {have}, this policyd needs {want}; start policyd once to upgrade it"
        )


def statements(script: str) -> list[str]:
    """The statements of a schema file; a trigger is one statement."""
    found, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            found.append(begun.strip())
            begun = ""
    return [statement for statement in found if statement]


def migrate(connection: sqlite3.Connection, path: str) -> int:
    """Bring the database to the newest schema; how many steps that took.

    :raises StoreRefused: the database is of a newer schema.
    """
    have = version_of(connection)
    if have > newest():
        check_version(connection, path)
    due = [(number, script) for number, script in steps() if number > have]
    if due and have:
        backup(connection, f"{path}.before-schema-{due[-1][0]}")
    for number, script in due:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute("COMMIT")
        except BaseException:
            # A full disk ends the transaction by itself.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(due)


def backup(connection: sqlite3.Connection, target: str) -> None:
    """Copy the database to ``target``, unless that exists already."""
    number = 1
    wanted = target
    while Path(target).exists():
        number += 1
        target = f"{wanted}.{number}"
    partial = Path(f"{target}.part")
    partial.unlink(missing_ok=True)
    # SQLite writes into an empty file, so the rights are those of the database: it holds who writes to whom.
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640))
    connection.execute("VACUUM INTO ?", (str(partial),))
    partial.rename(target)
