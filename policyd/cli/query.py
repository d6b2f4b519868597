"""``policyctl db query``: an ad-hoc question to the tables, in SQL, that cannot change anything."""

from __future__ import annotations

import sqlite3

import click

from policyd.answer import escape
from policyd.cli.common import Session, json_option, pass_session, table
from policyd.errors import UserError

#: Rows shown to people unless they ask for more; ``--json`` shows all.
SHOWN = 200


@click.command()
@click.argument("sql")
@click.option("--limit", type=click.IntRange(1), default=SHOWN, show_default=True, help="Rows to show.")
@json_option
@pass_session
def query(session: Session, sql: str, limit: int) -> None:
    """Ask the tables in SQL; nothing can be changed. The view "decision" shows the decisions."""
    # Slow to import, so only here.
    from sqlite_utils import Database

    with session.reading() as connection:
        database = Database(connection)
        connection.set_authorizer(_only_reading)
        try:
            rows = []
            for row in database.query(sql):
                rows.append(row)
                if not session.json and len(rows) > limit:
                    break
        except sqlite3.Error as error:
            raise UserError(f"the question cannot be answered: {escape(str(error), 300)}") from None
        except (ValueError, TypeError):
            # sqlite-utils 4 and 3.30, when a statement has no rows to give.
            raise UserError("that is no question; write one SELECT") from None
    if session.json:
        session.data([{name: _plain(value) for name, value in row.items()} for row in rows])
        return
    if not rows:
        click.echo("no rows")
        return
    click.echo(table(list(rows[0]), [[_plain(value) for value in row.values()] for row in rows[:limit]]))
    if len(rows) > limit:
        session.note(f"there are more than {limit} rows; see --limit")


def _only_reading(action: int, *_: object) -> int:
    """An authorizer (sqlite3_set_authorizer) that lets through what reads, and nothing else."""
    reading = (
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
        # sqlite-utils 4 puts a savepoint around each question.
        sqlite3.SQLITE_SAVEPOINT,
        sqlite3.SQLITE_TRANSACTION,
    )
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


def _plain(value: object) -> object:
    """A value that JSON and a terminal can show: octets as hexadecimal digits."""
    return value.hex() if isinstance(value, bytes) else value
