"""The end of a suspension's time on disk: whoever puts a row away first, upkeep, a new suspension or policyctl, tells of it."""

from __future__ import annotations

import json
import sqlite3

from policyd.store.clock import wall
from policyd.watch import AUTHOR


def end_expired(connection: sqlite3.Connection, now: int, user: str = "") -> None:
    """Take away the suspensions, of ``user`` or all, whose time is over at ledger time ``now``, within the caller's transaction.

    They do not hold any more since then; but the admin was told of the beginning, and is to be told of the end.
    """
    ended = connection.execute(
        "DELETE FROM suspension WHERE expires_at > 0 AND expires_at <= ?1 AND (?2 = '' OR user = ?2) "
        "RETURNING user, detector, ref",
        (now, user),
    ).fetchall()
    for of, detector, ref in sorted(ended):
        facts = json.dumps({"by": AUTHOR, "how": "its time is over", "detector": detector, "ref": ref})
        connection.execute(
            "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) VALUES (?, ?, 'suspend', ?, 1, ?)",
            (now, wall(), of, facts),
        )
        connection.execute(
            "INSERT INTO history (at, wall_at, author, action, subject, detail, reason) "
            "VALUES (?, ?, ?, 'release', ?, 'its time is over', '')",
            (now, wall(), AUTHOR, of),
        )
