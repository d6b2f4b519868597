"""``policyctl log``: search the decisions, group them, follow them; and how a decision is shown."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from policyd.answer import escape
from policyd.cli.common import Session, Times, json_option, pass_session, table, usage_errors
from policyd.errors import StoreDamaged

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
_ALL = 2**62
_DAYTIME = re.compile(
    r"(?:(today|yesterday)|(\d{4}-\d{2}-\d{2}))?(?:[t ]?(\d{1,2}:\d{2}(?::\d{2})?))?", re.ASCII
)


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
    return Wanted(
        user=account_of(session, options["user"]) if options["user"] else "",
        client=options["client"].strip().strip("[]"),
        sender=options["sender"].strip(),
        recipient=options["recipient"].strip(),
        action=options["action"].strip(),
        check=options["check"].strip(),
        stage=options["stage"].strip().upper(),
        ref=reference_of(options["ref"]),
        queue_id=options["queue_id"].strip(),
        since=bounds["since"],
        until=bounds["until"],
    )


def account_of(session: Session, user: str) -> str:
    """The account that ``user`` means; accounts that are no logins (``cert:``, ``client:``) stand as they are."""
    from policyd.cli.common import canonical_user
    from policyd.match import fold

    if user.startswith(("cert:", "client:")):
        return fold(user.strip())
    return canonical_user(session, user)


def reference_of(text: str) -> str:
    """A reference as it was given out, from how somebody typed it: Crockford's base 32 has no I, L, O."""
    text = text.strip().upper().removeprefix("REF").strip(" =:.,;")
    return text.replace("O", "0").replace("I", "1").replace("L", "1")


def parse_past(text: str, now: datetime) -> datetime:
    """The moment meant by ``2h`` (ago), ``14:30``, ``yesterday``, ``2026-12-01 08:00``; :class:`ValueError` otherwise."""
    from policyd.units import parse_duration

    words = " ".join(text.lower().split())
    wrong = ValueError(
        f"{text!r} is no time; write 2h (ago), 14:30, yesterday, 'yesterday 8:00' or '2026-12-01 08:00'"
    )
    if words in ("", "now"):
        return now
    match = _DAYTIME.fullmatch(words)
    if match is None:
        try:
            return now - timedelta(milliseconds=parse_duration(words.removesuffix(" ago")))
        except (ValueError, OverflowError):
            raise wrong from None
    day, date, clock = match.groups()
    try:
        moment = (
            datetime.fromisoformat(date)
            if date
            else now.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        )
        if clock:
            parts = [int(part) for part in clock.split(":")]
            moment = moment.replace(hour=parts[0], minute=parts[1], second=parts[2] if len(parts) == 3 else 0)
        if day == "yesterday":
            moment -= timedelta(days=1)
        here = moment.astimezone()
        if not day and not date and here > now:
            here = (moment - timedelta(days=1)).astimezone()
    except (ValueError, OverflowError):
        raise wrong from None
    return here


# --- one decision -----------------------------------------------------------------------------------------------------


def stamp(wall_ms: int) -> str:
    """A wall time for people, to the second, in the local zone."""
    return f"{datetime.fromtimestamp(wall_ms / 1000).astimezone():%Y-%m-%d %H:%M:%S %z}" if wall_ms else ""


def iso(wall_ms: int) -> str | None:
    """A wall time for programs, to the millisecond; ``None`` for 0."""
    return (
        datetime.fromtimestamp(wall_ms / 1000).astimezone().isoformat(timespec="milliseconds")
        if wall_ms
        else None
    )


def record(row: Logged) -> dict[str, Any]:
    """A decision for programs."""
    found: dict[str, Any] = {"id": row.id, "time": iso(row.wall_at)}
    found |= {
        name: value
        for name, value in row._asdict().items()
        if name not in ("id", "at", "wall_at", "detail", "charges")
    }
    return found | behind(row)._asdict()


class Behind(NamedTuple):
    """What stands behind a decision: each check's opinion, each limit's numbers, what was counted."""

    checks: list[dict[str, Any]]
    limits: list[dict[str, Any]]
    charges: list[dict[str, Any]]


_CHECK = ("check", "mode", "outcome", "micros", "reason")
_LIMIT = ("check", "scope", "value", "unit", "window_ms", "allowed", "used", "amount", "fits")
_CHARGE = ("scope", "value", "unit", "amount")


def behind(row: Logged) -> Behind:
    """
    :raises StoreDamaged: it cannot be read.
    """
    try:
        detail = json.loads(row.detail or "{}")
        found = Behind(
            [_named(_CHECK, entry) for entry in detail.get("checks", [])],
            [_named(_LIMIT, entry) for entry in detail.get("limits", [])],
            [_named(_CHARGE, entry) for entry in json.loads(row.charges or "[]")],
        )
        for limit in found.limits:
            limit["fits"] = bool(limit["fits"])
            limit["window_ms"] = int(limit["window_ms"])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreDamaged(
            f"decision {row.id} of {stamp(row.wall_at)} cannot be read: {error}; 'policyctl db check' looks for more, and "
            "'policyctl log' without --json lists it"
        ) from None
    return found


def _named(names: tuple[str, ...], entry: Any) -> dict[str, Any]:
    if not isinstance(entry, list):
        raise TypeError("no list where one is wanted")
    return dict(zip(names, entry, strict=True))


def who(row: Logged) -> str:
    """Whose request it was: the account, else the client."""
    return row.user or row.client or "-"


def whither(row: Logged) -> str:
    """The recipient, or how many there are."""
    if row.recipient:
        return row.recipient
    return f"({row.recipient_count} recipients)" if row.recipient_count else "-"


def line(row: Logged) -> str:
    """A decision as one line for people."""
    answer = (
        row.action
        if row.verdict != "pass" or " " in row.action
        else "pass"
        if row.action == "DUNNO"
        else row.action
    )
    parts = [
        stamp(row.wall_at)[:19],
        f"{escape(row.stage, 16):<14}",
        escape(who(row), 64),
        f"<{escape(row.sender, 80)}> -> {escape(whither(row), 80)}",
        escape(answer, 420),
    ]
    if row.by:
        parts.append(f"[{escape(row.by, 40)}]")
    if row.would:
        parts.append(f"(in shadow: {escape(row.would, 200)})")
    if row.queue_id:
        parts.append(escape(row.queue_id, 24))
    text = "  ".join(parts)
    return (
        click.style(text, fg={"refuse": "red", "hold": "yellow"}.get(row.verdict))
        if row.verdict != "pass"
        else text
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
            _show_groups(session, read.grouped(connection, wanted, by)[: limit or _ALL], by)
            return
        newest = read.newest_id(connection) if follow else 0
        rows = read.decisions(connection, wanted, limit or _ALL)[::-1]
        if follow:
            _follow(session, connection, wanted, rows, newest)
        elif session.json:
            session.data([record(row) for row in rows])
        else:
            for row in rows:
                click.echo(line(row))
            if not rows:
                click.echo("no such decision")


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


def decision_table(rows: list[Logged]) -> str:
    """Some decisions as a table, for explain."""
    return table(
        ["time", "stage", "recipient", "action", "by"],
        [(stamp(row.wall_at)[:19], row.stage, whither(row), row.action, row.by) for row in rows],
    )
