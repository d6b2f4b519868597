"""All steering data as JSON lines, out and in again; times as wall time, so that a file fits another database too."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from policyd.accounts import MILESTONES
from policyd.opinion import ENFORCE, OFF, SHADOW
from policyd.steering import (
    ALLOW_KINDS,
    BAN_KINDS,
    EVERY_CHECK,
    ROWS,
    CheckMode,
    Entry,
    Grant,
    Milestone,
    Row,
    SenderRight,
    Suspension,
    UserLimit,
    canonical_sender,
    canonical_value,
)
from policyd.store import admin
from policyd.store.clock import ledger_now, wall
from policyd.units import MAX_AMOUNT, UNITS, Limit, format_duration, format_size, parse_limit

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Two times of a row that differ by less are the same one: a millisecond passes between reading two clocks.
_SAME = 1_000
_FAR = _EPOCH + timedelta(days=365 * 1000)
_FIELDS = {
    "ban": ("kind", "value"),
    "allow": ("kind", "value"),
    "user_limit": ("user", "limit"),
    "user_grant": ("user", "unit", "amount"),
    "check_mode": ("name", "mode"),
    "sender_right": ("user", "sender"),
    "greylist_allow": ("kind", "value"),
    "suspension": ("user", "detector", "evidence", "step", "ref"),
    "milestone": ("name",),
}
_KINDS = {"ban": BAN_KINDS, "allow": ALLOW_KINDS, "greylist_allow": ALLOW_KINDS}


def limit_text(unit: str, window: int, amount: int) -> str:
    """An account's own limit as it is written: ``20 recipients per 1h``, ``unlimited recipients per 1h``."""
    return (
        f"unlimited {unit} per {format_duration(window)}" if amount < 0 else str(Limit(amount, unit, window))
    )


def parse_own_limit(text: str) -> Limit:
    """The limit that ``text`` means; ``unlimited recipients per 1h`` has the amount -1. :class:`ValueError` otherwise."""
    word, _, rest = text.strip().partition(" ")
    if word.lower() != "unlimited":
        return parse_limit(text)
    try:
        return parse_limit(f"1 {rest}")._replace(amount=-1)
    except ValueError:
        raise ValueError(f"{text!r} is no limit; write 'unlimited recipients per 1h'") from None


def instant(ledger: int, ahead: int) -> str | None:
    """A ledger time as ISO 8601 in UTC; ``None`` for 0. ``ahead`` is how far the wall clock is ahead, ms."""
    if not ledger:
        return None
    moment = _EPOCH + timedelta(
        milliseconds=min(ledger + ahead, (_FAR - _EPOCH) // timedelta(milliseconds=1))
    )
    return moment.isoformat(timespec="milliseconds")


def record(table: str, row: Any, ahead: int) -> dict[str, Any]:
    """A row of a steering table as it is shown to programs and dumped."""
    values: dict[str, Any] = {"table": table}
    if isinstance(row, UserLimit):
        values |= {"user": row.user, "limit": limit_text(row.unit, row.window, row.amount)}
    elif isinstance(row, Grant):
        values |= {"id": row.id, "user": row.user, "unit": row.unit, "amount": row.amount}
    elif isinstance(row, CheckMode):
        values |= {"name": row.name, "mode": row.mode}
    elif isinstance(row, SenderRight):
        values |= {"user": row.user, "sender": row.sender}
    elif isinstance(row, Suspension):
        values |= {
            "user": row.user,
            "detector": row.detector,
            "evidence": row.evidence,
            "step": row.step,
            "ref": row.ref,
        }
    elif isinstance(row, Milestone):
        values |= {"name": row.name}
    else:
        values |= {"kind": row.kind, "value": row.value}
    return values | {
        "reason": row.reason,
        "author": row.author,
        "created": instant(row.created_at, ahead),
        "expires": instant(row.expires_at, ahead),
    }


def dump(connection: sqlite3.Connection) -> Iterator[str]:
    """Everything in force, one JSON object a line, as of one moment."""
    connection.execute("BEGIN")
    try:
        now = ledger_now(connection)
        ahead = wall() - now
        for table in ROWS:
            for row in admin.rows(connection, table, now):
                yield json.dumps(record(table, row, ahead))
    finally:
        connection.execute("ROLLBACK")


@dataclass
class Loaded:
    """What a load does, or would do; with ``problems`` it does nothing."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    expired: int = 0
    problems: list[str] = field(default_factory=list)


#: Says what is wrong with a row for this site (:class:`ValueError`), or returns it, perhaps in canonical form.
Judge = Callable[[str, Any], Any]


def load(change: admin.Change, lines: Iterable[str], judge: Judge, replace: bool = False) -> Loaded:
    """Take in what :func:`dump` wrote.

    All lines are read before anything is changed; when one is wrong, nothing is, and each problem names its line.
    :param replace: also delete what is in force and not among the lines.
    """
    result = Loaded()
    wanted: dict[tuple[str, tuple[str | int, ...]], Row] = {}
    fresh: list[Grant] = []
    seen: dict[tuple[str, tuple[str | int, ...]], int] = {}
    ahead = wall() - change.now
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            table, row = _read(line, change, ahead)
            row = judge(table, row)
            if table == "user_grant" and not row[0]:
                fresh.append(Grant(*row))
                continue
            key = (table, admin.key_of(table, row))
            if key in seen:
                raise ValueError(f"says the same as line {seen[key]} again")
            seen[key] = number
            if table == "user_grant" and (there := change.find(table, row[0])) and there.user != row[1]:
                raise ValueError(
                    f"grant {row[0]} is {there.user}'s here; leave out id to add it as a new one"
                )
        except ValueError as error:
            result.problems.append(f"line {number}: {error}")
            continue
        if admin.in_force(row, change.now):
            wanted[key] = row
        else:
            result.expired += 1
    if not result.problems:
        _apply(change, wanted, fresh, replace, result)
    return result


def _apply(
    change: admin.Change,
    wanted: Mapping[tuple[str, tuple[str | int, ...]], Row],
    fresh: list[Grant],
    replace: bool,
    result: Loaded,
) -> None:
    if replace:
        for table in ROWS:
            for row in admin.rows(change.connection, table, change.now):
                key = admin.key_of(table, row)
                if (table, key) not in wanted:
                    change.drop(table, *key)
                    change.record("load", _subject(row), f"removed: {_about(table, row)}")
                    result.removed += 1
    for (table, key), row in wanted.items():
        before = change.find(table, *key)
        if before is not None and _equal(before, row):
            result.unchanged += 1
            continue
        change.put(table, row)
        change.record("load", _subject(row), f"{'changed' if before else 'added'}: {_about(table, row)}")
        if before:
            result.changed += 1
        else:
            result.added += 1
    for grant in fresh:
        change.put("user_grant", grant._replace(id=change.next_grant()))
        change.record("load", grant.user, f"added: {_about('user_grant', grant)}")
        result.added += 1


def _equal(before: Any, row: Any) -> bool:
    times = zip(before[-2:], row[-2:], strict=True)
    return bool(before[:-2] == row[:-2]) and all(
        bool(mine) == bool(theirs) and abs(mine - theirs) < _SAME for mine, theirs in times
    )


def _subject(row: Any) -> str:
    return str(getattr(row, "user", "") or getattr(row, "name", "") or getattr(row, "value", "")) or "<>"


def _about(table: str, row: Any) -> str:
    if isinstance(row, UserLimit):
        return f"limit {limit_text(row.unit, row.window, row.amount)}"
    if isinstance(row, Grant):
        return f"grant of {format_size(row.amount) if row.unit == 'bytes' else f'{row.amount} {row.unit}'}"
    if isinstance(row, CheckMode):
        return f"mode {row.mode}"
    if isinstance(row, SenderRight):
        return f"may send as {row.sender or '<>'}"
    if isinstance(row, Suspension):
        return f"suspension, step {row.step}"
    if isinstance(row, Milestone):
        return "milestone"
    return f"{table.replace('_', ' ')} {row.kind}"


def _read(line: str, change: admin.Change, ahead: int) -> tuple[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON object") from None
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")
    table = values.pop("table", None)
    if not isinstance(table, str) or table not in _FIELDS:
        raise ValueError(f"'table' must be one of {', '.join(_FIELDS)}")
    own = _FIELDS[table]
    known = {*own, "reason", "author", "created", "expires", *(["id"] if table == "user_grant" else [])}
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"has a key {unknown[0]!r}, which {table} does not; it has {', '.join(sorted(known))}"
        )
    if missing := [name for name in own if name not in values]:
        raise ValueError(f"has no {missing[0]!r}")
    common = (
        _text(values, "reason", ""),
        _text(values, "author", change.author) or change.author,
        _time(values, "created", change.now, ahead) or change.now,
        _time(values, "expires", 0, ahead),
    )
    return table, _row(table, values, common)


def _row(table: str, values: dict[str, Any], common: tuple[str, str, int, int]) -> Row:
    if table in _KINDS:
        kind = _choice(values, "kind", _KINDS[table])
        value = _text(values, "value") or "<>"
        return Entry(kind, value if kind == "user" else canonical_value(kind, value), *common)
    if table == "sender_right":
        return SenderRight(_text(values, "user"), canonical_sender(_text(values, "sender") or "<>"), *common)
    if table == "user_limit":
        limit = parse_own_limit(_text(values, "limit"))
        return UserLimit(_text(values, "user"), limit.unit, limit.window, limit.amount, *common)
    if table == "user_grant":
        unit = _choice(values, "unit", UNITS)
        number = 0 if values.get("id") is None else _number(values, "id")
        return Grant(number, _text(values, "user"), unit, _number(values, "amount"), *common)
    if table == "suspension":
        reason, by, created, expires = common
        return Suspension(
            _text(values, "user"),
            _text(values, "detector"),
            reason,
            _evidence(values),
            _number(values, "step"),
            _text(values, "ref"),
            by,
            created,
            expires,
        )
    if table == "milestone":
        return Milestone(_choice(values, "name", MILESTONES), *common)
    name = _text(values, "name")
    # Of all checks together there is but the pause, which counts on.
    return CheckMode(
        name, _choice(values, "mode", (SHADOW,) if name == EVERY_CHECK else (ENFORCE, SHADOW, OFF)), *common
    )


def _text(values: dict[str, Any], name: str, default: str | None = None) -> str:
    value = values.get(name, default)
    if not isinstance(value, str) or not value.isprintable() or len(value) > 500:
        raise ValueError(f"{name!r} must be a printable text of at most 500 characters")
    return value


def _evidence(values: dict[str, Any]) -> str:
    value = values.get("evidence")
    try:
        if isinstance(value, str) and len(value) <= 100_000 and isinstance(json.loads(value), dict):
            return value
    except (ValueError, RecursionError):
        pass
    raise ValueError("'evidence' must be a text that holds a JSON object, '{}' for none")


def _choice(values: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = values.get(name)
    if value not in choices:
        raise ValueError(f"{name!r} must be one of {', '.join(choices)}")
    return str(value)


def _number(values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_AMOUNT:
        raise ValueError(f"{name!r} must be a whole number above 0")
    return value


def _time(values: dict[str, Any], name: str, default: int, ahead: int) -> int:
    value = values.get(name)
    if value is None:
        return default
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, TypeError):
        raise ValueError(f"{name!r} must be a time such as 2026-12-01T18:30:00+01:00, or null") from None
    if moment.tzinfo is None or not _EPOCH < moment < _FAR:
        raise ValueError(f"{name!r} needs a time zone, as in 2026-12-01T18:30:00+01:00")
    return (moment - _EPOCH) // timedelta(milliseconds=1) - ahead
