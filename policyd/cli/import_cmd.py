"""``policyctl import``: the limits of another daemon, and what accounts have used there, taken over."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from policyd.cli.common import Session, Terms, json_option, login, one_line, pass_session, steering_options
from policyd.cli.import_parts import Imported
from policyd.steering import UserLimit
from policyd.units import Limit
from policyd.window import Counter, slot_width

if TYPE_CHECKING:
    from policyd.config import Config
    from policyd.store.admin import Change


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option(
    "--database",
    "counts",
    metavar="DB",
    type=click.Path(dir_okay=False),
    help="Its SQLite database: what was used.",
)
@steering_options(lasts=False)
@json_option
@pass_session
def rate_limit(session: Session, file: str, counts: str | None, terms: Terms) -> None:
    """Take over policyd-rate-limit: FILE is its policyd-rate-limit.yaml.

    Prints the part of policyd.toml that means the same, and writes limits of single accounts into policyd's database. With
    --database each account begins with what it has used there.
    """
    from policyd.cli import import_rate_limit
    from policyd.store.clock import wall

    found = import_rate_limit.read(file, lambda name: login(session, name))
    if counts is not None:
        import_rate_limit.read_counts(counts, found, lambda name: login(session, name), wall())
    _take(session, found, terms)


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@steering_options(lasts=False)
@json_option
@pass_session
def iredapd(session: Session, file: str, terms: Terms) -> None:
    """Take over iRedAPD: FILE is its table throttle, as CSV, tab-separated with a head, or SQLite.

    \b
    mysql -B iredapd -e 'SELECT * FROM throttle' > throttle.tsv
    psql --csv -d iredapd -c 'SELECT * FROM throttle' > throttle.csv

    Prints the part of policyd.toml that means the same, and writes limits of single accounts into policyd's database.
    """
    from policyd.cli import import_iredapd

    _take(session, import_iredapd.read(file, lambda name: login(session, name)), terms)


def _take(session: Session, found: Imported, terms: Terms) -> None:
    """Write what belongs into the database, and print what belongs into the file."""
    from policyd.store import admin

    begun = 0
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        for user, limits in found.own.items():
            for limit in limits:
                row = UserLimit(
                    user, limit.unit, limit.window, limit.amount, terms.reason, terms.author, change.now, 0
                )
                change.put("user_limit", row)
            change.record("quota set", user, f"from {found.source}: {', '.join(map(_text, limits))}")
        begun = _begin(session.config, connection, change, found)
        if begun:
            change.record("import", found.source, f"{begun} accounts begin with what they used there")
    for note in found.notes:
        session.note(note)
    text = found.toml()
    record = {
        "dry_run": terms.dry_run,
        "toml": text,
        "own_limits": {user: [_text(limit) for limit in limits] for user, limits in found.own.items()},
        "accounts_begun": begun,
        "notes": found.notes,
    }
    if not session.json:
        session.note(
            f"{terms.prefix}{len(found.own)} accounts get limits of their own, {begun} begin with what they have used; "
            "what follows belongs into policyd.toml"
        )
    session.done(record, *(one_line(line) for line in text.rstrip("\n").split("\n")))


def _text(limit: Limit) -> str:
    return str(limit) if limit.amount >= 0 else f"unlimited {str(limit._replace(amount=0)).partition(' ')[2]}"


def _begin(config: Config, connection: sqlite3.Connection, change: Change, found: Imported) -> int:
    """Count what was used, for accounts that have nothing counted here; how many that were."""
    from policyd.store.clock import wall

    ahead = wall() - change.now
    windows = {limit.window for limits, _ in found.tiers.values() for limit in limits}
    windows |= {limit.window for limits in found.own.values() for limit in limits}
    widths = sorted({slot_width(window) for window in windows})
    counters: dict[str, Counter] = {}
    for used in sorted(found.used, key=lambda used: used.at):
        counters.setdefault(used.user, Counter()).charge(widths, used.amount, max(0, used.at - ahead))
    begun = 0
    for user, counter in counters.items():
        # Not only the first: each unit has a row of its own.
        rows = [change.begin_usage(user, unit, counter) for unit in _units(config, found.unit)]
        begun += any(rows)
    return begun


def _units(config: Config, unit: str) -> Iterator[str]:
    """The units in which limits per user count it: with and without mail among the own domains."""
    ways = {
        check.options.count for check in config.checks if check.use == "quota" and check.options.per == "user"
    }
    yield unit
    if "external" in ways:
        yield f"{unit}/external"
