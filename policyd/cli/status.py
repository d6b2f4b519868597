"""``policyctl status``: does it run, what was asked, is what is configured also asked, and is all well with the file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.blocklists import SUBJECT
from policyd.cli.common import (
    NOT_RUNNING,
    UNKNOWN_RUNNING,
    Session,
    Times,
    json_option,
    pass_session,
    table,
)
from policyd.cli.when import iso, spoken
from policyd.decision import REFUSED
from policyd.request import END_OF_MESSAGE, MX, RCPT, SUBMISSION
from policyd.units import DAY, HOUR, format_duration, format_size

if TYPE_CHECKING:
    from policyd.store.read import Arrived

#: Decisions that are looked at for the last day at the most, so that the answer comes at once whatever the load.
LOOKED_AT = 100_000
#: Octets of WAL that mean that something keeps it from being copied into the database.
LONG_WAL = 256 * 1024 * 1024
#: Difference of wall clock and ledger time that is worth a word, ms.
APART = 2_000

#: Suspended logins that are named.
SHOWN = 10
_VERDICTS = ("pass", "hold", "refuse")


@click.command()
@json_option
@pass_session
def status(session: Session) -> int:
    """Does it run, and is all well. Exit code 4 when the daemon does not run, 1 when that cannot be seen."""
    from policyd.store import locks

    config = session.config
    running = locks.daemon_running(config.store.path)
    with session.reading() as connection:
        found = _look(session, connection, running)
    if session.json:
        session.data(found)
    else:
        for text_line in _lines(found):
            click.echo(text_line)
    return 1 if running is None else 0 if running else 4


def _look(session: Session, connection: sqlite3.Connection, running: bool | None) -> dict[str, Any]:
    from policyd.cli import status_dns
    from policyd.cli.db import file_sizes
    from policyd.store import migrate, read
    from policyd.store.clock import stored_base
    from policyd.store.steering_sync import SteeringMirror

    config = session.config
    times = Times.of(connection)
    hour, hour_complete = read.arrived(connection, times.now - HOUR, LOOKED_AT)
    day, day_complete = read.arrived(connection, times.now - DAY, LOOKED_AT)
    newest = read.decisions(connection, read.Wanted(), 1)
    mirror = SteeringMirror(connection)
    mirror.load()
    steering = mirror.steering
    base = stored_base(connection)
    before = base.wall - base.ledger if base is not None else 0
    files = file_sizes(config.store.path)
    stages = [
        {
            "direction": direction,
            "stage": stage,
            "decisions": sum(a.times for a in day if (a.direction, a.stage) == (direction, stage)),
            "last": iso(max(a.last_wall for a in day if (a.direction, a.stage) == (direction, stage))),
        }
        for direction, stage in dict.fromkeys((a.direction, a.stage) for a in day)
    ]
    found: dict[str, Any] = {
        "running": running,
        "pid": daemon_pid(session.database) if running else None,
        "policy_of_file": config.policy_version or None,
        "policy_in_force": in_force(connection, times.now + times.ahead) if running else None,
        "policy_of_last_decision": newest[0].policy if newest else None,
        "last_decision": iso(newest[0].wall_at) if newest else None,
        "generation": steering.generation,
        "modes": [
            {
                "check": mode.name,
                "mode": mode.mode,
                "until": times.iso(mode.expires_at),
                "author": mode.author,
                "reason": mode.reason,
            }
            for mode in steering.modes.values()
            if not mode.expires_at or times.now < mode.expires_at
        ],
        "bans": sum(1 for ban in steering.bans if ban.holds(times.now)),
        "allows": sum(1 for entry in steering.allows if entry.holds(times.now)),
        "suspended": sorted(
            row.user
            for row in steering.suspensions.values()
            if not row.expires_at or times.now < row.expires_at
        ),
        "last_hour": {
            direction: {
                verdict: sum(a.times for a in hour if (a.direction, a.verdict) == (direction, verdict))
                for verdict in _VERDICTS
            }
            for direction in (SUBMISSION, MX)
        },
        "last_hour_complete": hour_complete,
        "stages": stages,
        "stages_complete": day_complete,
        "dns": status_dns.look(connection, times.now + times.ahead) if running is not False else None,
        "alerts": _alerts(session, connection, times),
        "database": {"path": config.store.path, "schema": migrate.version_of(connection), **files},
        "wall_ahead_of_ledger_ms": times.ahead,
    }
    found["warnings"] = [
        *([] if running else [UNKNOWN_RUNNING if running is None else NOT_RUNNING]),
        *_policy_warnings(found),
        *_stage_warnings(session, day, bool(newest)),
        *status_dns.warnings(found["dns"]),
        *_alert_warnings(found["alerts"]),
        *_file_warnings(session, files),
    ]
    if base is not None and running and abs(times.ahead - before) > APART:
        found["warnings"].append(
            f"the wall clock was stepped by {(times.ahead - before) / 1000:+.0f} s; limits and bans go on by elapsed time"
        )
    return found


def in_force(connection: sqlite3.Connection, now: int) -> str | None:
    """By which policy the daemon says that it decides, at wall time ``now`` (ms); ``None`` when it has not said so lately."""
    from policyd.cli.status_dns import STALE
    from policyd.store.health import read_health

    said = [each.state for each in read_health(connection, "policy") if now - each.at <= STALE]
    return said[0] if said else None


def daemon_pid(database: str) -> int | None:
    """The process that holds the daemon's lock (proc(5), /proc/locks); ``None`` where that cannot be told."""
    try:
        status = os.stat(f"{database}.daemon-lock")
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            lines = [line.split() for line in locks]
    except OSError:
        return None
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for words in lines:
        # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:131082 0 EOF
        if words[1:2] == ["FLOCK"] and words[3:4] == ["WRITE"] and words[5:6] == [file]:
            return int(words[4]) if words[4].isdigit() and int(words[4]) else None
    return None


def _policy_warnings(found: dict[str, Any]) -> list[str]:
    now, decides = found["policy_of_file"], found["policy_in_force"]
    if now is None:
        return [
            "the file has errors, so policyd would not start with it; what it runs with holds; see 'policyctl config check'"
        ]
    if decides in (None, now):
        return []
    return [
        f"policyd decides by policy {escape(decides)}, the file's is {now}; 'systemctl reload policyd' takes the file over"
    ]


def _stage_warnings(session: Session, arrived: Sequence[Arrived], ever: bool) -> list[str]:
    """What is configured, and would need a stage that Postfix never asks about."""
    seen = {(each.direction, each.stage) for each in arrived}
    # Of what was refused no later stage comes.
    directions = {each.direction for each in arrived if each.verdict != REFUSED}
    warnings = []
    if not seen:
        text = "nothing was asked in the last day" if ever else "nothing was ever asked"
        warnings.append(
            f"{text}; see 'postconf -n | grep check_policy_service' and the README's lines for main.cf"
        )
    for section in session.config.checks:
        if section.use != "quota" or section.mode == "off":
            continue
        stage = RCPT if section.options.count_at == "rcpt" else END_OF_MESSAGE
        for direction in (SUBMISSION, MX):
            if section.direction not in ("any", direction) or (
                direction == MX and section.options.per != "client"
            ):
                continue
            name = escape(section.name)
            if direction in directions and (direction, stage) not in seen:
                warnings.append(
                    f"check {name} counts nothing: Postfix asked about {direction}, and never at {stage}; {_REMEDY[stage]}"
                )
            elif (
                (direction, END_OF_MESSAGE) in seen
                and (direction, RCPT) not in seen
                and section.options.count == "external"
            ):
                warnings.append(
                    f"check {name} cannot leave out internal mail to several recipients: "
                    f"Postfix never asked at RCPT about {direction}; {_REMEDY[RCPT]}"
                )
    return warnings


def _alerts(session: Session, connection: sqlite3.Connection, times: Times) -> list[dict[str, Any]]:
    """Each channel: how many alerts wait, since when, and what is wrong; and whether it was stopped."""
    from policyd.store import alerts

    waiting = {row[0]: row[1:] for row in alerts.waiting_by_channel(connection)}
    stopped = {name: (at, error) for name, at, error in alerts.stopped(connection)}
    names = [channel.name for channel in session.config.channels]
    found = []
    for name in dict.fromkeys((*names, *waiting)):
        count, since, failed, error = waiting.get(name, (0, 0, 0, ""))
        stop = stopped.get(name)
        found.append(
            {
                "channel": name,
                "configured": name in names,
                "waiting": count,
                "since": times.iso(since),
                "failed": failed,
                "error": stop[1] if stop else error,
                "stopped": times.iso(stop[0]) if stop else None,
            }
        )
    return found


def _alert_warnings(channels: list[dict[str, Any]]) -> list[str]:
    warnings = []
    for each in channels:
        name, error = escape(each["channel"]), escape(each["error"], 200)
        if each["stopped"]:
            warnings.append(
                f"alerts: channel {name} wants nothing any more ({error}); {each['waiting']} wait; remove it, or "
                f"'policyctl alert retry {name}'"
            )
        elif each["waiting"] and not each["configured"]:
            warnings.append(
                f"alerts: {each['waiting']} wait for channel {name}, which is not configured any more"
            )
        elif each["failed"]:
            warnings.append(
                f"alerts: {each['waiting']} wait for channel {name} since {spoken(each['since'])}: {error}; "
                "see 'policyctl alert'"
            )
    return warnings


_REMEDY = {
    END_OF_MESSAGE: "add check_policy_service to smtpd_end_of_data_restrictions (see contrib/postfix)",
    RCPT: "add check_policy_service to smtpd_recipient_restrictions, for Debian's submission entries to "
    "mua_recipient_restrictions (see contrib/postfix)",
}


def _file_warnings(session: Session, files: dict[str, int]) -> list[str]:
    keep = session.config.keep
    warnings = []
    if files["free"] < keep.min_free:
        warnings.append(
            f"{format_size(files['free'])} are free beside the database, less than [keep] min_free {format_size(keep.min_free)}"
        )
    if files["database"] > keep.max_size:
        warnings.append(f"the database is larger than [keep] max_size {format_size(keep.max_size)}")
    if files["wal"] > LONG_WAL:
        warnings.append(
            f"the WAL has {format_size(files['wal'])}: a reader holds it (a policyctl that hangs?), or the disk is slow"
        )
    return warnings


def _lines(found: dict[str, Any]) -> list[str]:
    running = found["running"]
    pid = f", pid {found['pid']}" if found["pid"] else ""
    said = {True: (f"policyd runs{pid}", "green"), False: ("policyd does not run", "red")}
    text, color = said.get(running, (UNKNOWN_RUNNING, "yellow"))
    lines = [click.style(text, fg=color, bold=True)]
    last = found["last_decision"]
    lines.append(
        f"policy {found['policy_of_file'] or 'unknown, the file has errors'}; last decision {spoken(last) or 'never'}"
        + (f" by policy {escape(found['policy_of_last_decision'])}" if last else "")
        + f"; steering generation {found['generation']}, {found['bans']} bans, {found['allows']} allows"
    )
    for mode in found["modes"]:
        until = f" until {spoken(mode['until'])}" if mode["until"] else ""
        name = escape(mode["check"])
        what = (
            "PAUSED: everything but bans in shadow"
            if name == "*"
            else f"blocklist {name.removeprefix(SUBJECT)}: {mode['mode']}"
            if name.startswith(SUBJECT)
            else f"check {name}: {mode['mode']}"
        )
        reason = f": {escape(mode['reason'])}" if mode["reason"] else ""
        lines.append(click.style(f"{what}{until}, by {escape(mode['author'])}{reason}", fg="yellow"))
    if found["suspended"]:
        some = ", ".join(escape(user) for user in found["suspended"][:SHOWN])
        rest = len(found["suspended"]) - SHOWN
        more = f" and {rest} more; 'policyctl bans suspended'" if rest > 0 else ""
        lines.append(click.style(f"suspended: {some}{more}", fg="yellow"))
    hour = found["last_hour"]
    beyond = "" if found["last_hour_complete"] else f" (of the newest {LOOKED_AT} decisions)"
    lines += ["", f"last hour{beyond}:"]
    lines.append(
        table(
            ["direction", *_VERDICTS], [(direction, *counts.values()) for direction, counts in hour.items()]
        )
    )
    if found["stages"]:
        beyond = "last day" if found["stages_complete"] else f"of the newest {LOOKED_AT} decisions"
        lines += ["", f"stages that arrived, {beyond}:"]
        lines.append(
            table(
                ["direction", "stage", "decisions", "last"],
                [
                    (stage["direction"], stage["stage"], stage["decisions"], spoken(stage["last"]))
                    for stage in found["stages"]
                ],
            )
        )
    database = found["database"]
    apart = found["wall_ahead_of_ledger_ms"]
    clock = (
        "in step"
        if abs(apart) <= APART
        else f"wall clock {format_duration(abs(apart))} {'ahead of' if apart > 0 else 'behind'} ledger time"
    )
    sizes = ", ".join(
        f"{name} {format_size(database[key])}" for name, key in (("WAL", "wal"), ("free", "free"))
    )
    lines += [
        "",
        f"{escape(database['path'], 1000)}: {format_size(database['database'])}, {sizes}, schema {database['schema']}",
    ]
    lines.append(f"clock: {clock}")
    if found["dns"] is not None:
        from policyd.cli import status_dns

        lines.append(status_dns.line(found["dns"]))
    if found["alerts"]:
        names = ", ".join(
            escape(each["channel"]) + (f" ({each['waiting']} wait)" if each["waiting"] else "")
            for each in found["alerts"]
        )
        lines.append(f"alerts: {names}")
    lines += [click.style(f"warning: {warning}", fg="yellow") for warning in found["warnings"]]
    return lines
