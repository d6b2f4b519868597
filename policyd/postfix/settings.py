"""One Postfix instance as postconf(1) tells it: parameters, services, and the value that holds in each service."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policyd.errors import PolicydError
from policyd.postfix import lists

#: Lists of smtpd(8), in the order in which they are evaluated.
LISTS = (
    "smtpd_client_restrictions",
    "smtpd_helo_restrictions",
    "smtpd_sender_restrictions",
    "smtpd_relay_restrictions",
    "smtpd_recipient_restrictions",
    "smtpd_data_restrictions",
    "smtpd_end_of_data_restrictions",
    "smtpd_etrn_restrictions",
)
RECIPIENT, RELAY, END_OF_DATA = LISTS[4], LISTS[3], LISTS[6]
_SUBMISSION_NAMES = frozenset({"submission", "submissions", "smtps", "587", "465"})
_NUMBER = re.compile(r"(\d+)(ms|[smhdw]?)\Z")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class PostfixError(PolicydError):
    """Postfix's configuration cannot be read or changed; the message says which command said what."""


@dataclass(frozen=True)
class Entry:
    """One line of master.cf that runs smtpd(8)."""

    name: str
    type: str
    chroot: bool
    #: What ``-o`` sets: as written, and with ``$name`` replaced.
    raw: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """As ``postconf -P`` names it."""
        return f"{self.name}/{self.type}"

    @property
    def port(self) -> str:
        """The service or port without the address."""
        return self.name.rpartition(":")[2]

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        host = self.name.rpartition(":")[0].strip("[]")
        return host.startswith("127.") or host in ("::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """The configuration of one instance."""

    #: ``""``: the default one.
    directory: str
    #: Parameters of main.cf and defaults: as written, and with ``$name`` replaced.
    raw: Mapping[str, str]
    values: Mapping[str, str]
    #: The parameters that main.cf sets.
    explicit: frozenset[str]
    #: smtpd services, in the order of master.cf.
    entries: tuple[Entry, ...]
    #: Other services: name/type and command, for what runs beside.
    commands: Mapping[str, str] = field(default_factory=dict)
    #: What postconf complained about.
    complaints: tuple[str, ...] = ()

    def of(self, entry: Entry | None, name: str) -> str:
        """The value that holds in a service, with ``$name`` replaced."""
        if entry is not None and name in entry.values:
            return entry.values[name]
        return self.values.get(name, "")

    def raw_of(self, entry: Entry | None, name: str) -> str:
        """The same as it was written."""
        if entry is not None and name in entry.raw:
            return entry.raw[name]
        return self.raw.get(name, "")

    def items(self, entry: Entry | None, name: str) -> list[lists.Item]:
        """The restrictions of a list in a service, those of classes in the place of their names."""
        names = lists.words(self.values.get("smtpd_restriction_classes", ""))
        return lists.flat(self.of(entry, name), {each: self.of(entry, each) for each in names})

    @property
    def queue_directory(self) -> str:
        """Where the queue is, and what services are chrooted to."""
        return self.values.get("queue_directory", "/var/spool/postfix")

    def submits(self, entry: Entry) -> bool:
        """Whether users hand in mail there and nobody else."""
        if entry.type != "inet":
            return False
        return entry.port in _SUBMISSION_NAMES or (
            entry.values.get("smtpd_sasl_auth_enable") == "yes" and entry.port not in ("smtp", "25")
        )

    def reinjects(self, entry: Entry) -> bool:
        """Whether a content filter of this machine gives mail back there."""
        if entry.type != "inet" or self.submits(entry) or entry.port in ("smtp", "25"):
            return False
        # Such an entry ends the filtering for itself, or takes mail from this machine and no other.
        ends_filter = any(entry.values.get(name) == "" for name in ("content_filter", "smtpd_proxy_filter"))
        trusts_loopback = entry.values.get("mynetworks", "").startswith("127.")
        only_own = entry.values.get(RECIPIENT, "").startswith("permit_mynetworks")
        return entry.on_loopback and (ends_filter or trusts_loopback or only_own)


def seconds(text: str) -> float | None:
    """A time of postconf(5) in seconds; ``None`` where it is none."""
    found = _NUMBER.match(text.strip())
    return int(found[1]) * _SECONDS[found[2]] if found else None


def run(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of Postfix's commands.

    :raises PostfixError: it is not there, or fails.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
            # Where Debian has them; the PATH of a user, and of cron, leaves it out.
            env={
                **os.environ,
                "LC_ALL": "C",
                "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            },
        )
    except FileNotFoundError:
        raise PostfixError(
            f"there is no command {command[0]} on this machine; install Postfix, or run policyctl as root there"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PostfixError(f"{' '.join(command)}: {error}") from None
    if check and done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise PostfixError(f"{' '.join(command)}: {said}")
    return done


def postconf(directory: str) -> list[str]:
    """The command for an instance, without its arguments."""
    return ["postconf", *(["-c", directory] if directory else [])]


def read(directory: str = "") -> Settings:
    """What postconf says of the instance whose main.cf is in ``directory``.

    :raises PostfixError: it says nothing.
    """
    base = postconf(directory)
    complaints: dict[str, None] = {}

    def told(*arguments: str) -> list[str]:
        done = run([*base, *arguments])
        complaints.update(dict.fromkeys(line for line in done.stderr.splitlines() if line.strip()))
        return done.stdout.splitlines()

    raw, values = _pairs(told()), _pairs(told("-x"))
    explicit = frozenset(_pairs(told("-n")))
    of_raw, of_values = _by_service(told("-P")), _by_service(told("-Px"))
    level = values.get("compatibility_level", "0")
    entries, commands = [], {}
    for line in told("-M"):
        parts = line.split(None, 7)
        if len(parts) < 8:
            continue
        name, kind, chroot, command = parts[0], parts[1], parts[4], parts[7]
        key = f"{name}/{kind}"
        commands[key] = command
        if command.split()[0] == "smtpd":
            jailed = chroot == "y" or (chroot == "-" and level.split(".")[0] == "0")
            entries.append(Entry(name, kind, jailed, of_raw.get(key, {}), of_values.get(key, {})))
    return Settings(directory, raw, values, explicit, tuple(entries), commands, tuple(complaints))


def _pairs(lines: Sequence[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = value.strip()
    return found


def _by_service(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, value in _pairs(lines).items():
        service, _, name = key.rpartition("/")
        found.setdefault(service, {})[name] = value
    return found
