"""Restriction lists of smtpd(8) as words: where policyd is asked in one, and what stands before it. No file, no process.

The grammar is that of postconf(5): words are separated by white space and commas, braces hold one together, and some
restrictions take the word behind them as their argument.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

#: Restrictions that end a list for clients of the site's own, so that what stands behind is not asked about them.
HIDES = frozenset(
    {
        "permit",
        "permit_mynetworks",
        "permit_sasl_authenticated",
        "permit_tls_clientcerts",
        "permit_tls_all_clientcerts",
        "permit_inet_interfaces",
    }
)
#: Restrictions behind which only mail is asked about that this machine has to take.
GUARDS = frozenset({"reject_unauth_destination", "defer_unauth_destination", "reject", "defer"})
#: Behind these nothing is asked at all.
_ENDS = frozenset({"reject", "defer", "defer_if_permit", "permit"})
_WITH_ARGUMENT = re.compile(
    r"(?:check_[a-z_]+|reject_(?:rbl|rhsbl)_[a-z_]+|(?:permit|reject)_(?:dnswl|rhswl)_[a-z_]+|sleep"
    r"|reject_maps_rbl_[a-z]+)\Z"
)
_CHECKS_A_TABLE = re.compile(r"check_[a-z_]+_access\Z")
POLICY_SERVICE = "check_policy_service"


class Item(NamedTuple):
    """One restriction of a list, with its argument, as it was written."""

    name: str
    argument: str = ""
    #: ``warn_if_reject`` stands before it.
    warns: bool = False

    def __str__(self) -> str:
        parts = ["warn_if_reject"] if self.warns else []
        return " ".join([*parts, self.name, *([self.argument] if self.argument else [])])


def words(text: str) -> list[str]:
    """The words of a value; what braces hold together is one."""
    found: list[str] = []
    word, depth = "", 0
    for ch in text:
        if depth == 0 and ch in ", \t\r\n":
            if word:
                found.append(word)
            word = ""
            continue
        depth += (ch == "{") - (ch == "}")
        word += ch
    return [*found, word] if word else found


def items(text: str) -> list[Item]:
    """The restrictions of a list."""
    found: list[Item] = []
    warns = False
    waiting = words(text)
    while waiting:
        word = waiting.pop(0)
        if word == "warn_if_reject":
            warns = True
            continue
        takes = _WITH_ARGUMENT.match(word) is not None and waiting
        # An old spelling: a table in a list means a check of it.
        found.append(Item(word, waiting.pop(0) if takes else "", warns))
        warns = False
    return found


def written(restrictions: Iterable[Item]) -> str:
    """A list as it stands in main.cf."""
    return ", ".join(map(str, restrictions))


class Service(NamedTuple):
    """What a ``check_policy_service`` asks, and how."""

    #: ``unix:PATH`` or ``inet:HOST:PORT`` as it was written.
    address: str
    #: ``timeout``, ``default_action``, ``policy_context`` and so on.
    options: Mapping[str, str]


def policy_service(argument: str) -> Service:
    """The argument of ``check_policy_service``: an address, or ``{ address, name=value ... }``."""
    inner = argument[1:-1] if argument.startswith("{") and argument.endswith("}") else argument
    # Within braces only commas and white space separate, and a part with either has braces of its own.
    parts = words(inner)
    options = {}
    at = 1
    while at < len(parts):
        part = parts[at].strip("{} ") if parts[at].startswith("{") else parts[at]
        # "timeout = 10s" is allowed, too.
        if part.endswith("=") and at + 1 < len(parts):
            at += 1
            part += parts[at]
        elif at + 1 < len(parts) and parts[at + 1].startswith("="):
            part += parts[at + 1]
            at += 1
            if part.endswith("=") and at + 1 < len(parts):
                at += 1
                part += parts[at]
        name, _, value = part.partition("=")
        options[name.strip()] = value.strip()
        at += 1
    return Service(parts[0] if parts else "", options)


def same_address(address: str, others: Collection[str], queue_directory: str) -> bool:
    """Whether an address of main.cf is one of ``others``, absolute ones in policyd's spelling."""
    return canonical(address, queue_directory) in {canonical(other, queue_directory) for other in others}


def canonical(address: str, queue_directory: str) -> str:
    """An address in one spelling: an absolute path, or a number and a port."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return "unix:" + os.path.realpath(os.path.join(queue_directory, rest))
    if kind != "inet":
        return address
    host, _, port = rest.rpartition(":")
    host = host.strip("[]")
    if host in ("", "localhost"):
        host = "127.0.0.1"
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        host = host.lower()
    return f"inet:{host}:{port}"


def flat(text: str, classes: Mapping[str, str], _around: frozenset[str] = frozenset()) -> list[Item]:
    """The restrictions of a list, those of smtpd_restriction_classes in the place of their names."""
    found: list[Item] = []
    for item in items(text):
        if item.name in classes and item.name not in _around:
            found += flat(classes[item.name], classes, _around | {item.name})
        else:
            found.append(item)
    return found


def may_permit(item: Item) -> bool:
    """Whether the list may end there with a permit: what stands behind would not be asked."""
    return item.name.startswith("permit") or _CHECKS_A_TABLE.match(item.name) is not None


def ends(item: Item) -> bool:
    """Whether nothing behind it is ever asked."""
    return item.name in _ENDS and not item.warns
