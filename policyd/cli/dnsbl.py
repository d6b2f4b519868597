"""``policyctl dnsbl``: how the blocklists do, which of them is worth its time, and one taken out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.blocklists import SUBJECT, Blocklist, public_name
from policyd.cli.check import drop_mode, set_mode
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    did_you_mean,
    json_option,
    pass_session,
    steering_options,
)
from policyd.errors import NotFound
from policyd.opinion import OFF

if TYPE_CHECKING:
    from policyd.steering import CheckMode
    from policyd.store.health import Health

#: The daemon writes every few seconds; what is older than this says that it does not run, ms.
STALE = 60_000
_FIGURES = ("asked", "hits", "alone", "errors", "refusals", "latency_ms", "slowest_ms", "sicknesses", "ipv6")
#: What they are called where the key is not a word.
_NAMES = {
    "alone": "hits of no other list",
    "latency_ms": "latency, ms",
    "slowest_ms": "slowest, ms",
    "ipv6": "test entry for IPv6",
}


@click.command()
@click.argument("zone", metavar="ZONE")
@steering_options()
@json_option
@pass_session
def off(session: Session, zone: str, terms: Terms) -> None:
    """Leave the list ZONE out from the next request on: it is not asked, and counts nothing.

    ZONE is its public name, or the zone as it stands in the file. Without --for or --until until 'policyctl dnsbl on ZONE'.
    """
    public = _public(session, zone)
    set_mode(session, SUBJECT + public, OFF, terms, "dnsbl off", public)


@click.command()
@click.argument("zone", metavar="ZONE")
@steering_options(lasts=False)
@json_option
@pass_session
def on(session: Session, zone: str, terms: Terms) -> None:
    """Let the list ZONE count again; a sick one still counts nothing."""
    public = _public(session, zone, even_gone=True)
    dropped = drop_mode(session, SUBJECT + public, terms, "dnsbl on")
    if dropped is None:
        _public(session, zone)
    said = "counts again, as far as it is well" if dropped else "was not off"
    session.done(
        {"dry_run": terms.dry_run, "list": public, "changed": dropped is not None},
        f"{terms.prefix}{escape(public)} {said}",
    )


@click.command()
@json_option
@pass_session
def list_lists(session: Session) -> None:
    """List the blocklists: health, hits, hits that no other list had, overlap, latency.

    A client counts once a minute at most. 'alone' are the hits that no other list of the same check had: a list with few
    of them is worth little. 'most like' is the list that had most of the same hits.
    """
    from policyd.cli.when import stamp

    records = _records(session)
    rows = [
        (
            each["list"],
            each["state"],
            stamp(each["since_wall"]) if each["since_wall"] else "",
            ", ".join(each["checks"]),
            each["figures"].get("hits", ""),
            each["figures"].get("alone", ""),
            _most_like(each["figures"]),
            each["figures"].get("errors", ""),
            f"{each['figures']['latency_ms']:g} ms" if "latency_ms" in each["figures"] else "",
            each["why"],
        )
        for each in records
    ]
    columns = ("list", "state", "since", "checks", "hits", "alone", "most like", "errors", "latency", "why")
    for each in records:
        del each["since_wall"]
    session.show(records, columns, rows, "no check of this configuration asks blocklists")


@click.command()
@click.argument("zone", metavar="ZONE")
@json_option
@pass_session
def show_list(session: Session, zone: str) -> None:
    """Show all that is known of the list ZONE."""
    from policyd.cli.when import stamp

    public = _public(session, zone)
    for each in (found := [each for each in _records(session) if each["list"] == public]):
        since = each.pop("since_wall")
        if session.json:
            continue
        figures = {key: value for key, value in each["figures"].items() if value is not None}
        lines = {
            "list": each["list"],
            "lists": each["lists"],
            "state": each["state"],
            "since": stamp(since) if since else "",
            "why": each["why"],
            "asked by": ", ".join(each["checks"]),
            "tested": stamp(figures["tested_at"]) if figures.get("tested_at") else "",
        }
        if "ipv6" in figures:
            figures["ipv6"] = "yes" if figures["ipv6"] else "no"
        lines |= {_NAMES.get(key, key): figures[key] for key in _FIGURES if key in figures}
        lines |= {f"hits of {other}, too": count for other, count in figures.get("overlap", {}).items()}
        for key, value in lines.items():
            if value != "":
                click.echo(f"{key}: {escape(str(value))}")
    if session.json:
        session.data(found)


# --- the lists of the configuration -----------------------------------------------------------------------------------


def _lists(session: Session) -> list[tuple[str, Blocklist]]:
    """The lists of the configuration, and the check that asks each."""
    from policyd.checks import dnsbl

    return [
        (section.name, each)
        for section in session.config.checks
        if isinstance(section.options, dnsbl.Options)
        for each in dnsbl.lists_of(section.options)
    ]


def _public(session: Session, zone: str, *, even_gone: bool = False) -> str:
    """The public name of a list that ``zone`` names.

    :raises NotFound: no check asks it.
    """
    wanted = zone.strip().lower().removesuffix(".").removeprefix(SUBJECT)
    lists = [each for _, each in _lists(session)]
    for each in lists:
        if wanted in (each.zone, each.public):
            return each.public
    # In a file with errors the check that asks it may be one of those that cannot be read.
    if even_gone or session.rescued is not None:
        return public_name(wanted)
    names = list(dict.fromkeys(each.public for each in lists))
    near = did_you_mean(wanted, names) or (f"; they ask {', '.join(names)}" if names else "")
    raise NotFound(f"no dnsbl check of {session.config_path} asks {escape(public_name(wanted))!r}{near}")


def _records(session: Session) -> list[dict[str, Any]]:
    """Each list of the configuration, with what the daemon last wrote of it."""
    from policyd.cli.when import iso
    from policyd.store import admin
    from policyd.store.health import read_health

    with session.reading() as connection:
        times = Times.of(connection)
        modes = {row.name: row for row in admin.rows(connection, "check_mode", times.now)}
        health = read_health(connection, SUBJECT)
    asked_by: dict[tuple[str, bool], list[str]] = {}
    for name, blocklist in _lists(session):
        asked_by.setdefault((blocklist.public, blocklist.domains), []).append(name)
    if health and times.now + times.ahead - max(each.at for each in health) > STALE:
        session.note("policyd does not run; these are the figures of its end")
    records = []
    for (public, domains), names in asked_by.items():
        known = health_of(health, public, domains)
        row = modes.get(SUBJECT + public)
        state, why = (
            (known.state, str(known.figures.get("why", "")))
            if known
            else ("unknown", "policyd has not run with it")
        )
        if row is not None and row.mode == OFF:
            state, why = "off", _why_off(row, times)
        records.append(
            {
                "list": public,
                "lists": "domains" if domains else "addresses",
                "state": state,
                "since": iso(known.since) if known else None,
                "since_wall": known.since if known else 0,
                "why": why,
                "checks": names,
                "figures": known.figures if known else {},
            }
        )
    return records


def health_of(health: Sequence[Health], public: str, domains: bool) -> Health | None:
    """What the daemon last wrote of a list."""
    kind = "domains" if domains else "addresses"
    subjects = (SUBJECT + public, f"{SUBJECT}{public} ({kind})")
    fitting = (each for each in health if each.subject in subjects and each.figures.get("lists") == kind)
    return next(fitting, None)


def _why_off(row: CheckMode, times: Times) -> str:
    return f"set by {row.author} until {times.until(row.expires_at)}" + (
        f": {row.reason}" if row.reason else ""
    )


def _most_like(figures: dict[str, Any]) -> str:
    overlap, hits = figures.get("overlap"), figures.get("hits")
    if not overlap or not hits:
        return ""
    other = max(overlap, key=overlap.__getitem__)
    return f"{other} {100 * overlap[other] // hits}%"
