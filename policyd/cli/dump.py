"""``policyctl dump`` and ``load``: all steering data as JSON lines, for bulk changes, copies and version control."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from policyd.cli.ban import never_bans
from policyd.cli.check import check_names
from policyd.cli.common import Session, author, json_option, login, pass_session, printable, usage_errors
from policyd.errors import UserError

#: Problems that are named; more of them say nothing new.
MOST_PROBLEMS = 20


@click.command()
@pass_session
def dump(session: Session) -> None:
    """Print every ban, allow, own limit, grant, sender right, set mode and suspension in force, one JSON object a line."""
    from policyd.store import dump as store_dump

    with session.reading() as connection:
        for line in store_dump.dump(connection):
            click.echo(line)


@click.command()
@click.argument("file")
@click.option("--replace", is_flag=True, help="Also take back what is in force and not in FILE.")
@click.option("--force", is_flag=True, help="With --replace: also when FILE is empty.")
@click.option("--reason", metavar="TEXT", default="", help="Why; kept with each change.")
@click.option("--dry-run", is_flag=True, help="Check every line, say what would be done, and change nothing.")
@json_option
@pass_session
def load(session: Session, file: str, replace: bool, force: bool, reason: str, dry_run: bool) -> None:
    """Take in what 'policyctl dump' wrote from FILE, or from stdin for '-'.

    Every line is checked first; if one is wrong, nothing is changed. A line without "id" is a new grant; "created" and "expires"
    may be left out.
    """
    from policyd.store import admin
    from policyd.store import dump as store_dump

    with usage_errors():
        why = printable(reason, "reason")
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    name = "stdin" if file == "-" else file
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if replace and not (force or dry_run or data.strip()):
        raise UserError(
            f"{name} is empty, and --replace would take back all that is in force; add --force if that is meant"
        )
    with (
        session.changing() as connection,
        admin.change(connection, author(), why, dry_run) as change,
    ):
        result = store_dump.load(change, lines, lambda table, row: _judge(session, table, row), replace)
        if result.problems:
            raise UserError("\n".join(_told(name, result.problems)))
    record = {key: value for key, value in vars(result).items() if key != "problems"}
    said = ", ".join(f"{value} {key}" for key, value in record.items() if value) or "nothing to do"
    prefix = "dry run, nothing is changed: " if dry_run else ""
    session.done({"dry_run": dry_run, **record}, f"{prefix}{said}")


def _told(name: str, problems: list[str]) -> list[str]:
    told = [f"{name}: {problem}" for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        told.append(f"{name}: and {len(problems) - MOST_PROBLEMS} more problems")
    return [*told, f"{name}: nothing was changed"]


def _judge(session: Session, table: str, row: Any) -> Any:
    """The row in the form in which this site keeps it; :class:`ValueError` when it must not be set here."""
    if table in ("user_limit", "user_grant", "sender_right", "suspension"):
        return row._replace(user=login(session, row.user))
    if table in ("ban", "allow", "greylist_allow"):
        if row.kind == "user":
            row = row._replace(value=login(session, row.value))
        if table == "ban" and (never := never_bans(session, row.kind, row.value)):
            raise ValueError(
                f"{row.kind} {row.value!r} is covered by {never!r} in the never list of the check 'bans'"
            )
    elif table == "check_mode" and row.name != "*" and row.name not in (names := check_names(session)):
        raise ValueError(
            f"there is no check {row.name!r} in {session.config_path}; it has {', '.join(names)}"
        )
    return row
