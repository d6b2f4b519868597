"""How a decision is shown: to programs, on one line, in a table; and how its reference is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from policyd.answer import escape
from policyd.cli.common import table
from policyd.cli.when import iso, stamp
from policyd.errors import StoreDamaged

if TYPE_CHECKING:
    from policyd.store.read import Logged


def reference_of(text: str) -> str:
    """A reference as it was given out, from how somebody typed it: Crockford's base 32 has no I, L, O."""
    text = text.strip().upper().removeprefix("REF").strip(" =:.,;")
    return text.replace("O", "0").replace("I", "1").replace("L", "1")


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
    if row.recipient_count:
        return f"({row.recipient_count} recipient{'s' if row.recipient_count > 1 else ''})"
    return "-"


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
        stamp(row.wall_at),
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


def decision_table(rows: list[Logged]) -> str:
    """Some decisions as a table, for explain."""
    return table(
        ["time", "stage", "recipient", "action", "by"],
        [(stamp(row.wall_at), row.stage, whither(row), row.action, row.by) for row in rows],
    )
