"""``policyctl shadow`` and ``enforce``: what runs in shadow, what it would have done, and how it is switched on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import click

from policyd.answer import escape
from policyd.cli.check import in_force, mode_of_detector, of_no_check
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    json_option,
    pass_session,
    steering_options,
    usage_errors,
)
from policyd.cli.findings import lines_of, records_of
from policyd.errors import UserError
from policyd.findings import Findings, cases_of_would
from policyd.opinion import ENFORCE, SHADOW
from policyd.steering import EVERY_CHECK, CheckMode
from policyd.units import DAY

if TYPE_CHECKING:
    import sqlite3

#: How far back it is looked unless said otherwise.
LOOK_BACK = 30 * DAY
#: Mails of which it is known that they were counted: those of one mail stand close to each other.
REMEMBERED = 20_000
#: Words that stand for several checks or detectors.
DETECT, ALL = "detect", "all"


class Switch(NamedTuple):
    """A check or detector that can be switched on."""

    name: str
    #: The module of a check; ``detect``.
    use: str
    mode: str
    configured: str
    #: The mode set by hand, if there is one.
    by_hand: CheckMode | None


@click.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--since", metavar="WHEN", help="From then on: 'today', 2026-11-01, 7d; default: 30 days.")
@json_option
@pass_session
def shadow(session: Session, names: tuple[str, ...], since: str | None) -> None:
    """Say what the checks and detectors in shadow would have done, how often, and to whom.

    NAME is quota or another kind of check, detect, or the name of a check or detector; without one: all that is in shadow.
    'policyctl enforce' switches them on.
    """
    with session.reading() as connection:
        times = Times.of(connection)
        chosen = [
            each for each in _chosen(session, connection, times, names or (ALL,)) if each.mode == SHADOW
        ]
        began = _began(since, times)
        findings = _found(connection, chosen, began)
    groups = findings.groups([each.name for each in chosen])
    if session.json:
        session.data(
            {
                "since": times.iso(began),
                "in_shadow": [each.name for each in chosen],
                "would": records_of(groups, times),
            }
        )
        return
    if not chosen:
        click.echo("nothing of it is in shadow" if names else "nothing is in shadow")
        return
    for line in _report(chosen, findings, began, times):
        click.echo(line)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@steering_options(lasts=False)
@json_option
@pass_session
def enforce(session: Session, names: tuple[str, ...], yes: bool, terms: Terms) -> None:
    """Show what checks and detectors in shadow would have done, ask, and switch them on.

    NAME is quota or another kind of check, detect, or all, which mean those of that kind that are in shadow; or the name of
    a check or detector. 'policyctl check shadow NAME' takes it back.
    """
    from policyd.store import admin

    with session.reading() as connection:
        times = Times.of(connection)
        chosen = [each for each in _chosen(session, connection, times, names) if each.mode != ENFORCE]
        began = times.now - LOOK_BACK
        findings = _found(connection, chosen, began)
        paused = admin.find(connection, "check_mode", (EVERY_CHECK,), times.now) is not None
    if chosen and not session.json:
        for line in _report(chosen, findings, began, times):
            click.echo(line)
        click.echo()
    if chosen and not (yes or terms.dry_run):
        what = ", ".join(escape(each.name) for each in chosen)
        if session.json or not sys.stdin.isatty():
            raise UserError(f"nothing was changed: add --yes to switch on {what}")
        click.confirm(f"Switch on {what}?", abort=True)
    if chosen:
        _switch_on(session, terms, chosen)
    if paused:
        session.note("everything is paused: it holds after 'policyctl resume'")
    session.done(
        {
            "dry_run": terms.dry_run,
            "enforced": [each.name for each in chosen],
            "would": records_of(findings.groups([each.name for each in chosen]), times),
        },
        *[f"{terms.prefix}{escape(each.name)} is in enforce" for each in chosen],
        *([] if chosen else ["it is in force already"]),
    )


def _switch_on(session: Session, terms: Terms, chosen: Iterable[Switch]) -> None:
    from policyd.store import admin

    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        for each in chosen:
            if each.configured == ENFORCE:
                change.drop("check_mode", each.name)
            else:
                row = CheckMode(each.name, ENFORCE, terms.reason, terms.author, change.now, 0)
                change.put("check_mode", row)
            change.record("enforce", each.name, f"was in {each.mode}")


def _chosen(
    session: Session, connection: sqlite3.Connection, times: Times, names: Iterable[str]
) -> list[Switch]:
    """The checks and detectors that ``names`` mean, each once; of a word that means several those in shadow."""
    from policyd.store import admin

    config = session.config
    by_hand = {row.name: row for row in admin.rows(connection, "check_mode", times.now)}
    by_hand.pop(EVERY_CHECK, None)
    switches = [
        Switch(check.name, check.use, in_force(check, by_hand)[0], check.mode, by_hand.get(check.name))
        for check in config.checks
    ]
    switches += [
        Switch(
            d.section.name,
            DETECT,
            mode_of_detector(d.section, by_hand)[0],
            d.section.mode,
            by_hand.get(d.section.name),
        )
        for d in config.detects
    ]
    found: dict[str, Switch] = {}
    for name in names:
        several = [each for each in switches if name in (ALL, each.use) and each.mode == SHADOW]
        one = [each for each in switches if each.name == name]
        if not (several or one or name in (ALL, DETECT) or any(each.use == name for each in switches)):
            raise of_no_check(session, name, [ALL, *{each.use: None for each in switches}])
        found |= {each.name: each for each in several or one}
    return list(found.values())


def _began(since: str | None, times: Times) -> int:
    """Ledger time of ``--since``, ms."""
    from policyd.cli.when import parse_past

    if since is None:
        return times.now - LOOK_BACK
    with usage_errors("--since"):
        moment = parse_past(since, datetime.now().astimezone())
    return round(moment.timestamp() * 1000) - times.ahead


def _found(connection: sqlite3.Connection, chosen: Iterable[Switch], began: int) -> Findings:
    """What ``chosen`` would have done, each mail once."""
    from policyd.store import read

    findings, names = Findings(), {each.name for each in chosen}
    counted: dict[tuple[str, str, str], None] = {}
    for row in read.shadowed(connection, began):
        for case in cases_of_would(row.would, row.user or row.client, row.at):
            key = (row.instance, case.name, case.what)
            if case.name not in names or (row.instance and key in counted):
                continue
            counted[key] = None
            if len(counted) > REMEMBERED:
                del counted[next(iter(counted))]
            findings.add(case)
    return findings


def _report(chosen: list[Switch], findings: Findings, began: int, times: Times) -> list[str]:
    groups = findings.groups([each.name for each in chosen])
    quiet = [each.name for each in chosen if each.name not in {group.name for group in groups}]
    lines = (
        [f"since {times.text(began)}, had it been in force:", "", *lines_of(groups, times)] if groups else []
    )
    if quiet:
        if groups:
            lines.append("")
        lines.append(
            f"nothing would have been done since {times.text(began)} by: {', '.join(map(escape, quiet))}"
        )
    return lines
