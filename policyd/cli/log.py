"""``policyctl log``: search the decisions, group them, follow them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.common import (
    Session,
    Times,
    account_of,
    did_you_mean,
    json_option,
    known_user,
    pass_session,
    usage_errors,
)
from policyd.cli.decisions import line, record, reference_of
from policyd.cli.when import iso, parse_past, stamp
from policyd.errors import NotFound
from policyd.request import STAGES

if TYPE_CHECKING:
    import sqlite3

    from policyd.store.read import Logged, Wanted

#: Between two looks for new decisions, s.
POLL = 0.5
#: The same names as ``policyd.store.read.GROUPS``, which would be slow to import for the help alone.
GROUPS = (
    "user",
    "client",
    "sender",
    "sender-domain",
    "recipient",
    "action",
    "verdict",
    "check",
    "stage",
    "direction",
    "policy",
    "listener",
)
#: First words of answers, besides numbers: access(5) and the verdicts.
ACTIONS = (
    *("pass", "hold", "refuse"),
    *("DUNNO", "PREPEND", "DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT", "REJECT", "DISCARD", "WARN", "INFO"),
    *("FILTER", "REDIRECT", "BCC", "OK"),
)
_NUMBER = re.compile(r"[245][0-9][0-9]")
#: What decides beside the checks.
_NO_CHECKS = ("deadline",)
_ALL = 2**62


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which decisions are meant."""
    for name, metavar, text in reversed(
        (
            ("--user", "LOGIN", "The account."),
            ("--client", "CLIENT", "An address, a network or a host name; .example.org for all below."),
            ("--sender", "ADDRESS", "An address, @domain, or <> for the null sender."),
            ("--recipient", "ADDRESS", "An address or @domain."),
            ("--action", "ACTION", "pass, hold, refuse, or an action's first word: DUNNO, 450."),
            ("--check", "NAME", "The check that decided, or would have in shadow."),
            ("--stage", "STAGE", "RCPT, END-OF-MESSAGE, ..."),
            ("--since", "WHEN", "From then on: 2h (ago), 14:30, yesterday, '2026-12-01 08:00'."),
            ("--until", "WHEN", "Up to then."),
            ("--ref", "REF", "The reference in a refusal."),
            ("--queue-id", "ID", "Postfix's queue id."),
        )
    ):
        command = click.option(name, metavar=metavar, default="", help=text)(command)
    return command


def wanted_of(session: Session, times: Times, options: Mapping[str, str]) -> Wanted:
    """Which decisions the options mean."""
    from policyd.store.read import Wanted

    now = datetime.fromtimestamp((times.now + times.ahead) / 1000).astimezone()
    bounds = {"since": 0, "until": 0}
    for name in bounds:
        if options[name]:
            with usage_errors(f"--{name}"):
                bounds[name] = int(parse_past(options[name], now).timestamp() * 1000) - times.ahead
    action = options["action"].strip()
    word = action.partition(" ")[0]
    if action and not _NUMBER.fullmatch(word) and word.lower() not in map(str.lower, ACTIONS):
        near = did_you_mean(word, ACTIONS)
        near = near or "; write pass, hold, refuse, or an answer's first word, as DUNNO or 450"
        raise click.UsageError(f"--action: {word!r} is no answer{near}", click.get_current_context())
    return Wanted(
        user=account_of(session, options["user"]) if options["user"] else "",
        client=options["client"].strip().strip("[]"),
        sender=options["sender"].strip(),
        recipient=options["recipient"].strip(),
        action=action,
        check=options["check"].strip(),
        stage=options["stage"].strip().upper(),
        ref=reference_of(options["ref"]),
        queue_id=options["queue_id"].strip(),
        since=bounds["since"],
        until=bounds["until"],
    )


@click.command()
@filters
@click.option(
    "--by", type=click.Choice(GROUPS), help="Count per user, client, check, ... instead of listing."
)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="The newest so many; 0 for all.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new decisions as they come; end with Ctrl-C.")
@json_option
@pass_session
def log(session: Session, /, by: str | None, limit: int, follow: bool, **options: str) -> None:
    """Search the decisions, newest last.

    With --json a list of objects; with --follow too, one object a line.
    """
    if by and follow:
        raise click.UsageError("--by and --follow exclude each other", click.get_current_context())
    from policyd.store import read

    with session.reading() as connection:
        wanted = wanted_of(session, Times.of(connection), options)
        if by:
            groups = read.grouped(connection, wanted, by)[: limit or _ALL]
            if not groups:
                _must_exist(session, connection, wanted)
            _show_groups(session, groups, by)
            return
        newest = read.newest_id(connection) if follow else 0
        rows = read.decisions(connection, wanted, limit or _ALL)[::-1]
        if not rows and not follow:
            _must_exist(session, connection, wanted)
        if follow:
            _follow(session, connection, wanted, rows, newest)
        elif session.json:
            session.data([record(row) for row in rows])
        else:
            for row in rows:
                click.echo(line(row))
            if not rows:
                click.echo("no such decision")


def _must_exist(session: Session, connection: sqlite3.Connection, wanted: Wanted) -> None:
    """What was named and not found may be mistyped: no decision is no proof that nothing happened then.

    :raises NotFound: there is no such account, check or stage.
    """
    from policyd.cli.check import check_names

    if wanted.user:
        known_user(connection, wanted.user, False, anyway="; no decision is kept of it")
    names = [*check_names(session), *_NO_CHECKS]
    if wanted.check and wanted.check not in names:
        near = did_you_mean(wanted.check, names) or f"; there is {', '.join(map(escape, names))}"
        raise NotFound(f"no decision is by a check {escape(wanted.check)!r}, and the file has none{near}")
    if wanted.stage and wanted.stage not in STAGES:
        near = did_you_mean(wanted.stage, STAGES, 0.5) or f"; there are {', '.join(STAGES)}"
        raise NotFound(f"Postfix has no stage {escape(wanted.stage, 40)!r}{near}")


def _show_groups(session: Session, groups: list[Any], by: str) -> None:
    records = [{**group._asdict(), by: group.value, "last": iso(group.last_wall)} for group in groups]
    for entry in records:
        del entry["value"], entry["last_wall"]
    rows = [
        (
            group.value or "-",
            group.decisions,
            group.passed,
            group.held,
            group.refused,
            group.recipients,
            stamp(group.last_wall),
        )
        for group in groups
    ]
    session.show(
        records,
        [by, "decisions", "passed", "held", "refused", "recipients", "last"],
        rows,
        "no such decision",
    )


def _follow(
    session: Session, connection: sqlite3.Connection, wanted: Wanted, rows: list[Logged], newest: int
) -> None:
    from dataclasses import replace

    from policyd.store import read

    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for row in rows:
                click.echo(json.dumps(record(row)) if session.json else line(row))
                newest = max(newest, row.id)
            time.sleep(POLL)
            rows = read.decisions(connection, replace(wanted, after=newest), _ALL)[::-1]
