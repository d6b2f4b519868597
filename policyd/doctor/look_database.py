"""Facts from the database: the file itself, and what Postfix asked about in the last day."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping

from policyd.cli import status_dns
from policyd.cli.status import in_force
from policyd.config import Config
from policyd.decision import REFUSED
from policyd.doctor.facts import Asked, Database
from policyd.store import admin, contents, read
from policyd.store.clock import ledger_now, wall
from policyd.store.steering_sync import SteeringMirror
from policyd.units import DAY

#: A file that takes longer to check is checked by policyctl db check, s.
LONGEST_CHECK = 10.0
#: Decisions that are looked at, at most.
LOOKED_AT = 100_000


def size_of(path: str) -> int:
    """Octets; 0 for what is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def database(connection: sqlite3.Connection, path: str) -> Database:
    """The file."""
    (first_change,) = connection.execute("SELECT coalesce(min(wall_at), 0) FROM history").fetchone()
    oldest = [at for at in (contents.sizes(connection).oldest_wall, first_change) if at]
    backups = [row[0] for row in admin.history(connection, "database", 100) if row[2] == "db backup"]
    return Database(
        path,
        size_of(path),
        size_of(f"{path}-wal"),
        _problems(connection),
        min(oldest, default=0),
        max(backups, default=0),
        wall(),
    )


def _problems(connection: sqlite3.Connection) -> tuple[str, ...]:
    until = time.monotonic() + LONGEST_CHECK
    connection.set_progress_handler(lambda: time.monotonic() > until, 100_000)
    try:
        return tuple(contents.problems(connection, quick=True))
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return ()
    finally:
        connection.set_progress_handler(None, 0)


def asked(connection: sqlite3.Connection) -> Asked:
    """What arrived in the last day."""
    now = ledger_now(connection)
    arrived, _ = read.arrived(connection, now - DAY, LOOKED_AT)
    stages: dict[tuple[str, str], int] = {}
    refusals: dict[str, int] = {}
    for each in arrived:
        stages[each.direction, each.stage] = stages.get((each.direction, each.stage), 0) + each.times
        if each.verdict == REFUSED:
            refusals[each.direction] = refusals.get(each.direction, 0) + each.times
    newest = read.decisions(connection, read.Wanted(), 1)
    mirror = SteeringMirror(connection)
    mirror.load()
    modes = {
        mode.name: mode.mode
        for mode in mirror.steering.modes.values()
        if not mode.expires_at or now < mode.expires_at
    }
    health = status_dns.look(connection, wall())
    sick = (
        {each["name"]: each["why"] for each in health["lists"] if each["state"] == "sick"} if health else {}
    )
    return Asked(
        stages,
        newest[0].wall_at if newest else 0,
        in_force(connection, wall()) or "",
        modes,
        sick,
        refusals=refusals,
    )


def missing(
    config: Config, stages: Mapping[tuple[str, str], int], refusals: Mapping[str, int]
) -> tuple[str, ...]:
    """One line for each check that needs a stage which, by what arrived, Postfix never asks at."""
    from policyd.errors import ConfigError
    from policyd.service import build_engine
    from policyd.stagewatch import StageWatch

    try:
        watch = StageWatch(build_engine(config).rules)
    except ConfigError:
        return ()
    watch.seen, watch.refusals = dict(stages), dict(refusals)
    return tuple(watch.missing())
