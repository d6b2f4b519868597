"""A sound installation as facts, for tests that plant one mistake in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from policyd.checks import options_of
from policyd.config import Config, load
from policyd.doctor.facts import (
    Asked,
    Clock,
    Database,
    Disk,
    Facts,
    MailLog,
    Nameserver,
    Process,
    Socket,
    Software,
)
from policyd.doctor.judge import judge
from policyd.postfix.settings import Settings
from policyd.units import DAY
from tests.postfix.made import QUEUE, SUBMISSION, changed, settings

NOW = 1_800_000_000_000
CONFIG = f"""
[site]
domains = ["example.org"]
[server]
listen = ["unix:{QUEUE}/policyd/policy.sock"]
[tiers]
default = "regular"
[tier.regular]
limits = ["20 recipients per 1h"]
[[check]]
use = "bans"
[[check]]
use = "quota"
for = "submission"
[[check]]
use = "dnsbl"
for = "mx"
sites = ["zen.example"]
[[check]]
use = "spf"
for = "mx"
[[check]]
use = "greylist"
for = "mx"
"""
SERVICES: Mapping[str, Mapping[str, str]] = {
    "smtp": {},
    "submission": SUBMISSION,
    "submissions": SUBMISSION,
    "127.0.0.1:10025": {"content_filter": "", "mynetworks": "127.0.0.0/8"},
}


def config(directory: Path, text: str = CONFIG) -> Config:
    path = directory / "policyd.toml"
    path.write_text(text)
    return load(path, options_of)


def wired(
    main: Mapping[str, str] | None = None, services: Mapping[str, Mapping[str, str]] = SERVICES
) -> Settings:
    """A Postfix as ``policyctl postfix enable`` leaves it."""
    return changed(settings(main or {}, services))


def edited(
    found: Settings,
    main: Mapping[str, str] | None = None,
    services: Mapping[str, Mapping[str, str]] | None = None,
) -> Settings:
    """The same after an admin has changed something."""
    parameters = {name: found.raw[name] for name in found.explicit} | dict(main or {})
    entries = {entry.name: dict(entry.raw) for entry in found.entries}
    for name, overrides in (services or {}).items():
        entries[name] = entries.get(name, {}) | dict(overrides)
    return settings(parameters, entries)


def sound(directory: Path, text: str = CONFIG) -> Facts:
    """Nothing is wrong."""
    return Facts(
        config=config(directory, text),
        listeners=((f"unix:{QUEUE}/policyd/policy.sock", ""),),
        running=True,
        postfix=wired(),
        sockets=(Socket(f"unix:{QUEUE}/policyd/policy.sock"),),
        nameservers=(Nameserver("127.0.0.1:53"),),
        clock=Clock(),
        disks=(Disk("/var/lib/policyd", "the database", 10**10, 10**9),),
        database=Database("/var/lib/policyd/policyd.db", 10**6, 0, (), NOW - 30 * DAY, NOW - DAY, NOW),
        asked=Asked(
            {("submission", "RCPT"): 9, ("submission", "END-OF-MESSAGE"): 9}, NOW - 60_000, "", {}, {}, ()
        ),
        log=MailLog("/var/log/mail.log", {(0, "root"): 3}),
        process=Process(4711),
        software=(
            Software("postfix", "3.7.11"),
            Software("twisted", "22.4.0", "22.4.0-4+deb12u1"),
            Software("dnspython", "2.7.0"),
        ),
    )


def names(facts: Facts) -> list[str]:
    """What the doctor says of it."""
    return [finding.name for finding in judge(facts)]


def but(facts: Facts, part: str, **changes: Any) -> Facts:
    """The facts with something else in one part."""
    return replace(facts, **{part: replace(getattr(facts, part), **changes)})
