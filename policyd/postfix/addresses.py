"""Where policyd listens, in the spelling of main.cf: relative to the queue directory, so that a chroot does not matter."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from policyd.errors import UserError
from policyd.postfix import lists
from policyd.request import MX, SUBMISSION

#: Where socket units lie, what the admin wrote first (systemd.unit(5)).
UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)


class Addresses(NamedTuple):
    """Whom Postfix has to ask."""

    mx: str
    submission: str
    #: All of policyd's addresses in its own spelling: who asks one of these asks policyd.
    all: tuple[str, ...]


def resolved(
    listeners: Iterable[tuple[str, str]], units: Sequence[str] = UNIT_DIRECTORIES
) -> list[tuple[str, str]]:
    """(address, direction) of each listener that Postfix can ask, ``systemd:NAME`` by what its socket unit says."""
    found = []
    for address, direction in listeners:
        kind, _, rest = address.partition(":")
        if kind == "systemd":
            found += [(each, direction) for each in _of_unit(rest, units)]
        elif kind in ("unix", "inet"):
            found.append((address, direction))
    return found


def _of_unit(name: str, units: Sequence[str]) -> list[str]:
    """What the socket unit with this FileDescriptorName listens to (systemd.socket(5))."""
    for directory in units:
        for path in sorted(glob.glob(os.path.join(directory, "*.socket"))):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read(65536)
            except OSError:
                continue
            names = re.findall(r"^\s*FileDescriptorName\s*=\s*(\S+)", text, re.MULTILINE)
            # Without FileDescriptorName= it is the name of the unit, with its suffix.
            if (names[-1] if names else os.path.basename(path)) != name:
                continue
            return [_stream(each) for each in re.findall(r"^\s*ListenStream\s*=\s*(\S+)", text, re.MULTILINE)]
    return []


def _stream(text: str) -> str:
    if text.startswith("/"):
        return f"unix:{text}"
    return f"inet:{text}" if ":" in text else f"inet:127.0.0.1:{text}"


def choose(listeners: Sequence[tuple[str, str]], queue_directory: str, chrooted: bool) -> Addresses:
    """The address for each direction: a UNIX socket that smtpd(8) can reach, else a TCP port.

    :param listeners: as :func:`resolved` gives them.
    :param chrooted: whether an smtpd runs within the queue directory.
    :raises UserError: there is none.
    """
    usable: list[tuple[str, str]] = []
    outside = ""
    for address, direction in listeners:
        kind, _, path = address.partition(":")
        if kind == "inet":
            usable.append((address, direction))
            continue
        inside = _within(path, queue_directory)
        if inside:
            usable.append((f"unix:{inside}", direction))
        elif not chrooted:
            usable.append((address, direction))
        else:
            outside = path
    usable.sort(key=lambda each: each[0].startswith("inet:"))
    chosen = {}
    for wanted in (MX, SUBMISSION):
        fitting = [address for address, direction in usable if direction in ("", wanted)]
        if not fitting:
            where = os.path.join(queue_directory, "policyd/policy.sock")
            why = (
                f"{outside} is outside of {queue_directory}, in which smtpd is locked up"
                if outside
                else f"policyd listens nowhere that Postfix can ask about {wanted}"
            )
            raise UserError(f'{why}; write listen = ["unix:{where}"] into [server] of policyd.toml')
        chosen[wanted] = fitting[0]
    return Addresses(chosen[MX], chosen[SUBMISSION], tuple(address for address, _ in listeners))


def _within(path: str, directory: str) -> str:
    """The path relative to the directory; ``""`` when it is not below it."""
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    relative = os.path.relpath(real, os.path.realpath(directory))
    return "" if relative.startswith("..") else relative


def is_ours(item: lists.Item, addresses: Iterable[str], queue_directory: str) -> bool:
    """Whether a restriction asks policyd."""
    if item.name != lists.POLICY_SERVICE:
        return False
    asked = lists.policy_service(item.argument).address
    return lists.same_address(asked, list(addresses), queue_directory)
