"""The DNS in ``policyctl status``: which nameserver is down and which blocklist sick, as the daemon last wrote it."""

from __future__ import annotations

import sqlite3
from typing import Any

import click

from policyd.answer import escape
from policyd.blocklists import SUBJECT
from policyd.cli.when import iso, spoken
from policyd.store.health import Health, read_health

#: The daemon writes every few seconds; what is older than this it does not say any more, ms.
STALE = 60_000
_RESOLVER, _NAMESERVER = "resolver", "nameserver/"


def look(connection: sqlite3.Connection, now: int) -> dict[str, Any] | None:
    """How nameservers and lists do at wall time ``now`` (ms); ``None`` when no check asks the DNS, or no daemon says."""
    health = [each for each in read_health(connection, "") if now - each.at <= STALE]
    resolver = [each for each in health if each.subject == _RESOLVER]
    if not resolver:
        return None
    return {
        "state": resolver[0].state,
        "since": iso(resolver[0].since),
        "nameservers": [_part(each, _NAMESERVER) for each in health if each.subject.startswith(_NAMESERVER)],
        "lists": [_part(each, SUBJECT) for each in health if each.subject.startswith(SUBJECT)],
    }


def _part(health: Health, prefix: str) -> dict[str, Any]:
    figures = health.figures
    return {
        "name": health.subject.removeprefix(prefix),
        "state": health.state,
        "since": iso(health.since),
        "why": figures.get("why", ""),
        "latency_ms": figures.get("latency_ms"),
    }


def warnings(found: dict[str, Any] | None) -> list[str]:
    """What is in trouble, one line each, with what follows from it."""
    if found is None:
        return []
    servers = found["nameservers"]
    told = []
    if found["state"] == "down":
        names = ", ".join(escape(each["name"]) for each in servers)
        told.append(
            f"no nameserver answers ({names}), so mail goes on without blocklists and SPF; see [dns] nameservers"
        )
    else:
        told += [
            f"nameserver {escape(each['name'])} does not answer since {spoken(each['since'])}; the others are asked"
            for each in servers
            if each["state"] == "down"
        ]
    told += [
        f"blocklist {escape(each['name'])} is sick and counts nothing since {spoken(each['since'])}: "
        f"{escape(each['why'], 200)}; see 'policyctl dnsbl list'"
        for each in found["lists"]
        if each["state"] == "sick"
    ]
    return told


def line(found: dict[str, Any]) -> str:
    """All of it in a line."""
    servers = ", ".join(
        f"{escape(each['name'])} {each['state']}"
        + (f" {each['latency_ms']:g} ms" if each["latency_ms"] and each["state"] == "up" else "")
        for each in found["nameservers"]
    )
    sick = sum(each["state"] == "sick" for each in found["lists"])
    lists = f"; blocklists: {len(found['lists']) - sick} well, {sick} sick" if found["lists"] else ""
    trouble = found["state"] == "down" or sick
    return click.style(f"dns: {found['state']}; {servers}{lists}", fg="yellow" if trouble else None)
