"""Who "we" are, as Postfix knows it: its own domains and networks for [site] of policyd.toml."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple

from policyd.postfix import lists
from policyd.postfix.settings import PostfixError, Settings, run

#: postmap(1) can list the keys of these.
_LISTABLE = frozenset({"hash", "btree", "cdb", "dbm", "lmdb", "sdbm"})
_DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*\Z")
#: Keys that are read of a table at the most.
MOST = 100_000


class Ourselves(NamedTuple):
    """What Postfix says of the site."""

    domains: tuple[str, ...]
    networks: tuple[str, ...]
    default_domain: str
    #: What cannot be listed, one line each, with what to do.
    notes: tuple[str, ...]


def ourselves(settings: Settings) -> Ourselves:
    """The domains that mail is delivered or relayed for, the networks of $mynetworks, and $myorigin."""
    notes: list[str] = []
    domains: dict[str, None] = {}
    for name in ("mydestination", "virtual_mailbox_domains", "virtual_alias_domains", "relay_domains"):
        for word in _members(settings, name, notes):
            domain = word.lower().rstrip(".")
            if "@" not in domain and _DOMAIN.match(domain) and not _is_address(domain):
                domains[domain] = None
    networks: dict[str, None] = {}
    for word in _members(settings, "mynetworks", notes):
        try:
            networks[str(ipaddress.ip_network(word.replace("[", "").replace("]", ""), strict=False))] = None
        except ValueError:
            notes.append(f"mynetworks: {word} is no network; add what it means to networks of [site] by hand")
    origin = settings.values.get("myorigin", "")
    if origin.startswith("/"):
        origin = next(iter(_lines(origin)), "")
    return Ourselves(tuple(domains), tuple(networks), origin.lower(), tuple(notes))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _members(settings: Settings, name: str, notes: list[str]) -> list[str]:
    """The members of a list of postconf(5), those in files and tables, too."""
    found: list[str] = []
    for word in lists.words(settings.values.get(name, "")):
        if word.startswith("!"):
            notes.append(f"{name}: {word} excludes something; see that [site] leaves it out")
        elif word.startswith("/"):
            found += _lines(word)
        elif re.match(r"[a-z]+:", word) and not _is_network(word):
            found += _keys(settings, name, word, notes)
        else:
            found.append(word)
    return found


def _is_network(word: str) -> bool:
    # fe80::/10 begins like the name of a table type.
    try:
        ipaddress.ip_network(word, strict=False)
    except ValueError:
        return False
    return True


def _keys(settings: Settings, name: str, table: str, notes: list[str]) -> list[str]:
    kind, _, path = table.removeprefix("proxy:").partition(":")
    if kind == "inline":
        return [part.strip("{} ").split("=")[0].strip() for part in lists.words(path.strip("{}"))]
    if kind in ("texthash", "cidr"):
        return [line.split()[0] for line in _lines(path)]
    if kind in _LISTABLE:
        option = ["-c", settings.directory] if settings.directory else []
        try:
            lines = run(["postmap", *option, "-s", f"{kind}:{path}"]).stdout.splitlines()
        except PostfixError as error:
            notes.append(f"{name}: {error}; add its members to [site] by hand")
            return []
        return [line.split()[0] for line in lines[:MOST] if line.strip()]
    if name == "virtual_alias_domains" and settings.raw.get(name) == "$virtual_alias_maps":
        return []
    notes.append(f"{name}: {table} cannot be listed; add its members to [site] by hand")
    return []


def _lines(path: str) -> list[str]:
    """The lines of a file that say something; none of one that is not there."""
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.partition("#")[0].strip() for line in file.read(16 * 1024 * 1024).splitlines()]
    return [line for line in lines if line][:MOST]
