"""What the doctor knows of a machine, and what it says of it: values only, made by the modules that look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policyd.config import Config
from policyd.postfix.settings import Settings

#: Levels, in the order of how bad they are; the numbers are exit codes of monitoring plug-ins.
CRITICAL, WARNING, UNKNOWN = "critical", "warning", "unknown"
EXIT_CODES = {CRITICAL: 2, WARNING: 1, UNKNOWN: 3}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    #: A short name that does not change, for --ignore and for scripts.
    name: str
    level: str
    what: str
    #: What follows from it.
    why: str
    #: The command or the line that mends it.
    mend: str


@dataclass(frozen=True)
class Socket:
    """One address that policyd listens at, seen from outside."""

    address: str
    exists: bool = True
    is_socket: bool = True
    #: Permissions of the file, and who has it.
    mode: int = 0o660
    owner: str = "policyd"
    group: str = "postfix"
    #: The part of the path that keeps Postfix's user out; ``""``: none does.
    closed_at: str = ""
    #: Whether somebody takes connections; ``None``: not tried.
    answers: bool | None = True


@dataclass(frozen=True)
class Nameserver:
    """One resolver, asked for a name that cannot exist."""

    name: str
    #: ``answers``, ``silent`` or ``refuses``.
    state: str = "answers"
    #: The address that it gave to that name.
    rewrites_to: str = ""
    #: Whether it is somebody else's: public, or a provider's.
    foreign: bool = False


@dataclass(frozen=True)
class Clock:
    """The wall clock."""

    #: What the kernel says (adjtimex(2)); ``None``: nothing.
    synchronised: bool | None = True
    #: How far it was set since the daemon last wrote, ms.
    stepped: int = 0
    #: How far it is from the hardware clock, s; ``None``: there is none to be read.
    from_hardware: int | None = 0


@dataclass(frozen=True)
class Disk:
    """One file system."""

    path: str
    #: What lies there, in words.
    what: str
    #: Octets free for others than root, and octets below which it is too little.
    free: int
    needed: int
    #: The part of its inodes that is free, 0 to 1.
    free_inodes: float = 1.0


@dataclass(frozen=True)
class Database:
    """The database file."""

    path: str
    size: int = 0
    wal: int = 0
    #: What the check of the file found, or why it cannot be read.
    problems: tuple[str, ...] = ()
    #: Wall time, ms: the oldest thing in it, and the last backup; 0: none.
    oldest: int = 0
    last_backup: int = 0
    now: int = 0


@dataclass(frozen=True)
class Asked:
    """What Postfix asked about in the last day."""

    #: Decisions by (direction, stage).
    stages: Mapping[tuple[str, str], int] = field(default_factory=dict)
    #: Wall time of the newest decision at all, ms.
    newest: int = 0
    #: The policy by which the daemon says that it decides; ``""``: it has not said so lately.
    in_force: str = ""
    #: Checks and lists whose mode was set by hand.
    modes: Mapping[str, str] = field(default_factory=dict)
    #: Sick blocklists, and why.
    sick_lists: Mapping[str, str] = field(default_factory=dict)
    #: Checks whose needed stages are missed by what arrived: one line each.
    missing: tuple[str, ...] = ()
    #: Of the decisions by direction, how many were refusals.
    refusals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MailLog:
    """What the mail log of the last day says."""

    place: str
    #: Messages by user who gave them to sendmail(1): uid and name.
    pickup: Mapping[tuple[int, str], int] = field(default_factory=dict)
    #: Times within the last hour in which Postfix could not ask policyd.
    failures: int = 0


@dataclass(frozen=True)
class Process:
    """The daemon's process (proc(5))."""

    pid: int
    uid: int = 999
    #: The effective capabilities, a mask.
    capabilities: int = 0
    no_new_privileges: bool = True
    #: Open files that it may have.
    files: int = 65536


@dataclass(frozen=True)
class Software:
    """A program or library, with the version that its maker or Debian gave it."""

    name: str
    version: str
    #: Debian's version of the package that it came from; ``""``: it did not.
    debian: str = ""


@dataclass(frozen=True)
class Facts:
    """All that the rules look at. ``None`` is what could not be seen, or is not there."""

    config: Config | None = None
    #: Why the configuration is refused; empty: it is not.
    config_problem: str = ""
    #: Where policyd listens, as in the configuration, with the sockets of systemd.
    listeners: tuple[tuple[str, str], ...] = ()
    running: bool | None = True
    postfix: Settings | None = None
    sockets: tuple[Socket, ...] = ()
    nameservers: tuple[Nameserver, ...] = ()
    clock: Clock | None = None
    disks: tuple[Disk, ...] = ()
    database: Database | None = None
    asked: Asked | None = None
    log: MailLog | None = None
    process: Process | None = None
    software: tuple[Software, ...] = ()
    #: Modules of rspamd that its local configuration switches off.
    rspamd_off: frozenset[str] = frozenset()
    #: What could not be looked at, and why.
    unseen: Mapping[str, str] = field(default_factory=dict)

    def mode(self, name: str) -> str:
        """The mode in which a check runs, by hand or by the file."""
        set_by_hand = self.asked.modes if self.asked is not None else {}
        configured = (
            next((check.mode for check in self.config.checks if check.name == name), "")
            if self.config
            else ""
        )
        return set_by_hand.get(name, configured)

    def uses(self, *checks: str) -> list[str]:
        """Names of the checks of these kinds that are enforced."""
        if self.config is None:
            return []
        return [
            each.name
            for each in self.config.checks
            if each.use in checks and self.mode(each.name) == "enforce"
        ]
