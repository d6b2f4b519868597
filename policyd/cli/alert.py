"""``policyctl alert``: what the admin is told of, what waits, and whether the channels work."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import click

from policyd.alert import GIVEN_UP, RETRY, SENT, TEST, WAITS, Alert, Event
from policyd.answer import escape
from policyd.cli.common import (
    NOT_RUNNING,
    Session,
    Times,
    Unreachable,
    author,
    did_you_mean,
    json_option,
    pass_session,
    table,
)
from policyd.errors import NotFound, UserError

#: How long a test waits for the channels, s, beyond the time they have.
PATIENCE = 5.0


@click.command()
@click.option("--all", "everything", is_flag=True, help="Those that were sent too.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), default=100, show_default=True, help="The newest N."
)
@json_option
@pass_session
def list_alerts(session: Session, everything: bool, limit: int) -> None:
    """List alerts that wait for their channel or were given up, newest first.

    \\b
    policyctl alert
    policyctl alert list --all
    """
    from policyd.store import alerts

    with session.reading() as connection:
        times = Times.of(connection)
        found = alerts.alerts(connection, everything, limit)
        stopped = list(alerts.stopped(connection))
    names = {channel.name for channel in session.config.channels}
    session.show(
        [alerts.record(alert, times.ahead) for alert in found],
        ("id", "made", "channel", "kind", "subject", "state", "failed", "next try", "error"),
        [
            (
                alert.uid[:8],
                times.text(alert.at),
                alert.channel,
                alert.kind,
                _subject(alert),
                _state(alert, names),
                alert.tries,
                times.text(alert.next_try) if alert.state == WAITS and alert.next_try > times.now else "",
                alert.error[:60],
            )
            for alert in found
        ],
        "no alert waits" if not everything else "there was no alert",
    )
    for channel, at, error in stopped:
        session.warn(
            f"channel {escape(channel)} wants nothing any more since {times.text(at)}: {escape(error)}; "
            f"'policyctl alert retry {escape(channel)}' tries it again"
        )
    if not names:
        session.note(
            f'{session.config_path} has no [[alert]], so nobody is told anything; add one, as to = "mailto:root"'
        )


@click.command()
@click.argument("id_", metavar="ID")
@json_option
@pass_session
def show_alert(session: Session, id_: str) -> None:
    """Show one alert as its channel gets it. ID is what list shows, or the beginning of it."""
    from policyd.alerts.text import words
    from policyd.store import alerts

    with session.reading() as connection:
        times = Times.of(connection)
        alert = _find(connection, id_)
    if session.json:
        session.data(alerts.record(alert, times.ahead))
        return
    told = [
        ("id", alert.uid),
        ("channel", alert.channel),
        ("made", times.text(alert.at)),
        ("state", alert.state + (f" {times.text(alert.done_at)}" if alert.done_at else "")),
        ("failed", str(alert.tries)),
    ]
    if alert.state == WAITS:
        told.append(("next try", times.text(max(alert.next_try, times.now))))
    if alert.error:
        told.append(("error", alert.error))
    click.echo(table(["alert", ""], told))
    click.echo()
    click.echo(words(alert).text())


@click.command()
@click.argument("what", metavar="[ID|CHANNEL]", required=False)
@json_option
@pass_session
def retry_alerts(session: Session, what: str | None) -> None:
    """Send now what waits: an alert, all of a channel, or all. One that was given up waits again, if it is named.

    A channel that answered 410 Gone is tried again.
    """
    from policyd.store import alerts

    _must_run(session)
    with session.changing() as connection:
        times = Times.of(connection)
        names = {channel.name for channel in session.config.channels}
        names |= {name for name, *_ in alerts.waiting_by_channel(connection)}
        names |= {name for name, *_ in alerts.stopped(connection)}
        what = what or ""
        given_up: Alert | None = None
        if what and what not in names:
            alert = _find(connection, what, sorted(names))
            if alert.state == SENT:
                raise UserError(
                    f"alert {alert.uid} was sent already; 'policyctl alert show {alert.uid}' tells when"
                )
            what = alert.uid
            given_up = alert if alert.state == GIVEN_UP else None
        connection.execute("BEGIN IMMEDIATE")
        if given_up is not None:
            alerts.wait_again(connection, given_up, times.now)
        event = Event(0, times.now, times.now + times.ahead, RETRY, what, False, {"author": author()})
        alerts.put_event(connection, event)
        connection.execute("COMMIT")
    shown = escape(what) if what else "all that waits"
    session.done({"retry": what or None}, f"{shown} is tried now; 'policyctl alert' shows how it goes")


@click.command()
@click.argument("channel", required=False)
@json_option
@pass_session
def test_channels(session: Session, channel: str | None) -> int:
    """Send a test to CHANNEL, or to each, and say what came of it. Exit code 1 when one did not take it.

    \\b
    policyctl alert test
    policyctl alert test mailto:root
    """
    from policyd.store import alerts

    config = session.config
    names = [each.name for each in config.channels]
    if not names:
        raise UserError(f'{session.config_path} has no [[alert]]; add one, as to = "mailto:root"')
    if channel is not None and channel not in names:
        raise NotFound(
            f"there is no channel {escape(channel)}{did_you_mean(channel, names)}; there is {', '.join(names)}"
        )
    _must_run(session)
    with session.changing() as connection:
        times = Times.of(connection)
        event = Event(0, times.now, times.now + times.ahead, TEST, channel or "", False, {"by": author()})
        event = event._replace(id=alerts.put_event(connection, event))
    wanted = {event.uid(name): name for name in ([channel] if channel else names)}
    found = _wait(session, set(wanted), time.monotonic() + config.alerts.timeout / 1000 + PATIENCE)
    with session.reading() as connection:
        stopped = {name: error for name, _, error in alerts.stopped(connection)}
    records: list[dict[str, Any]] = []
    lines = []
    for uid, name in wanted.items():
        alert = found.get(uid)
        state = alert.state if alert is not None else "not taken"
        error = alert.error if alert is not None else "the daemon has not looked; does it run with this file?"
        if alert is not None and not error and name in stopped:
            error = f"{stopped[name]}; 'policyctl alert retry {name}' tries it again"
        records.append({"channel": name, "state": state, "error": error})
        color = "green" if state == SENT else "red"
        lines.append(
            f"{click.style(state, fg=color)}  {escape(name)}" + (f": {escape(error)}" if error else "")
        )
    session.done({"tests": records}, *lines)
    return 0 if all(each["state"] == SENT for each in records) else 1


def _wait(session: Session, uids: set[str], until: float) -> dict[str, Alert]:
    """The alerts with these uids, once each was sent or has failed, or the time is over."""
    from policyd.store import alerts

    found: dict[str, Alert] = {}
    while True:
        with session.reading() as connection:
            for uid in uids:
                found.update((alert.uid, alert) for alert in alerts.matching(connection, uid))
        if time.monotonic() >= until or all(uid in found and _settled(found[uid]) for uid in uids):
            return found
        time.sleep(0.1)


def _settled(alert: Alert) -> bool:
    return alert.state != WAITS or alert.tries > 0


def _must_run(session: Session) -> None:
    from policyd.store import locks

    if locks.daemon_running(session.database) is False:
        raise Unreachable(f"{NOT_RUNNING}; and nobody sends alerts: 'systemctl start policyd'")


def _find(connection: sqlite3.Connection, uid: str, others: list[str] | None = None) -> Alert:
    from policyd.store import alerts

    found = alerts.matching(connection, uid) if uid else []
    if not found:
        near = did_you_mean(uid, others or [])
        raise NotFound(f"there is no alert {escape(uid)}{near}; 'policyctl alert list --all' shows all")
    if len(found) > 1:
        raise UserError(f"several alerts begin with {escape(uid)}; write more of it")
    return found[0]


def _subject(alert: Alert) -> str:
    what = alert.subject or f"{alert.count} together"
    return f"{what} (over)" if alert.resolved else what


def _state(alert: Alert, names: set[str]) -> str:
    return "no such channel" if alert.state == WAITS and alert.channel not in names else alert.state
