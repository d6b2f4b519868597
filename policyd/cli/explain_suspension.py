"""What stands behind the refusal of a suspended login: the detector, its sentence, what it found, the decisions that prove it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from policyd.answer import escape
from policyd.cli.accounts import (
    evidence_lines,
    evidence_of,
    release_command,
    suspension_in_force,
    suspension_text,
)
from policyd.cli.common import Session, Times
from policyd.steering import Suspension

if TYPE_CHECKING:
    import sqlite3

    from policyd.store.read import Logged

#: What the reason of a decision begins with when a suspension refused it.
_REASON = "suspended"
#: What is told of a decision may be written a moment after it was made, ms.
_MOMENT = 1_000


class Behind(NamedTuple):
    """The suspension that refused a mail."""

    row: Suspension
    #: The sentence of the detector; empty by hand, or where it is not known any more.
    when: str
    #: Whether it is still in force.
    in_force: bool
    decisions: list[Logged]


def behind(session: Session, connection: sqlite3.Connection, refused: Logged) -> Behind | None:
    """The suspension that refused a mail; ``None`` when none did, or nothing is known of it any more."""
    from policyd.store import read

    if refused.verdict != "refuse" or not refused.user or not refused.reason.startswith(_REASON):
        return None
    now = Times.of(connection).now
    row = suspension_in_force(connection, refused.user, now)
    in_force = row is not None and row.created_at <= refused.at
    began = read.suspension_began(connection, refused.user, refused.at + _MOMENT)
    told = _facts(began.facts) if began is not None else {}
    if not in_force:
        if began is None:
            return None
        row = _of_event(refused.user, began.at, told)
    assert row is not None
    when = str(told.get("when") or "") or _sentence(session, row.detector)
    return Behind(row, when, in_force, read.by_ids(connection, evidence_of(row)["decisions"]))


def _facts(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _of_event(user: str, at: int, told: dict[str, Any]) -> Suspension:
    """A suspension that is over, from what was told of it."""
    lasts, step = told.get("lasts"), told.get("step")
    return Suspension(
        user,
        str(told.get("detector") or ""),
        str(told.get("reason") or ""),
        json.dumps({name: told.get(name) for name in ("values", "decisions")}),
        step if isinstance(step, int) else 0,
        str(told.get("ref") or ""),
        str(told.get("by") or "policyd"),
        at,
        at + lasts if isinstance(lasts, int) and lasts else 0,
    )


def _sentence(session: Session, detector: str) -> str:
    return next(
        (str(each.section.when) for each in session.config.detects if each.section.name == detector), ""
    )


def record(found: Behind, times: Times) -> dict[str, Any]:
    """For programs."""
    from policyd.cli.accounts import suspension_record
    from policyd.cli.decisions import record as decision_record

    return {
        **suspension_record(found.row, times),
        "when": found.when or None,
        "in_force": found.in_force,
        "decided": [decision_record(row) for row in found.decisions],
    }


def lines(found: Behind, times: Times) -> list[str]:
    """For people."""
    from policyd.cli.decisions import decision_table

    text = suspension_text(found.row, times)
    over = "" if found.in_force else "; it is over"
    told = [
        "",
        f"{escape(found.row.user)} was {text}{over}" if over else f"{escape(found.row.user)} is {text}",
    ]
    if found.when:
        told.append(f"  when        {escape(found.when, 300)}")
    told += [f"  {each}" for each in evidence_lines(found.row)]
    if found.decisions:
        told += ["", "The decisions that prove it:", decision_table(found.decisions)]
    if found.in_force:
        told += ["", f"helps: {release_command(found.row.user)}"]
    return told
