"""Rules about what policyd stands on: nameservers, blocklists, clock, disks, database, versions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from policyd.doctor.facts import CRITICAL, UNKNOWN, WARNING, Facts, Finding
from policyd.doctor.holes import holes
from policyd.units import DAY, format_duration, format_size

#: A clock that is further off than this is wrong, ms; one that is off by a minute is noticed in mail.
APART, HARDWARE_APART = 2_000, 60
#: As policyctl status: something keeps the WAL from being copied into the database.
LONG_WAL = 256 * 1024 * 1024
BACKUP_AGE = 7 * DAY
FEW_INODES = 0.02
OWN = 'nameservers = ["127.0.0.1"] in [dns] of policyd.toml, with a resolver of your own: apt install unbound'


def resolver(facts: Facts) -> Iterator[Finding]:
    """Nameservers that do not answer, lie, or are somebody else's."""
    silent = [each for each in facts.nameservers if each.state != "answers"]
    for each in silent:
        all_of_them = len(silent) == len(facts.nameservers)
        how = "does not answer" if each.state == "silent" else "refuses to answer"
        yield Finding(
            "resolver-silent",
            CRITICAL if all_of_them else WARNING,
            f"the nameserver {each.name} {how}",
            "mail goes on without blocklists and SPF"
            if all_of_them
            else "every look-up of another has to wait for it first",
            "systemctl restart unbound" if each.name.startswith(("127.", "[::1]")) else OWN,
        )
    for each in facts.nameservers:
        if each.rewrites_to:
            yield Finding(
                "resolver-rewrites",
                CRITICAL,
                f"the nameserver {each.name} gives {each.rewrites_to} for a name that does not exist",
                "every client would look listed and every domain real; policyd takes its lists out of use for it",
                OWN,
            )
        elif each.foreign:
            yield Finding(
                "resolver-public",
                WARNING,
                f"the nameserver {each.name} is not your own",
                "blocklists refuse public and large resolvers, or give them wrong answers: nobody is listed then",
                OWN,
            )


def sick_lists(facts: Facts) -> Iterator[Finding]:
    """Blocklists that count nothing."""
    for name, why in facts.asked.sick_lists.items() if facts.asked is not None else ():
        yield Finding(
            "list-sick",
            WARNING,
            f"the blocklist {name} is sick: {why}",
            "it counts nothing until it is well again",
            f"policyctl dnsbl show {shlex.quote(name)}; if it is gone for good, take it out of sites in policyd.toml",
        )


def clock(facts: Facts) -> Iterator[Finding]:
    """A wall clock that is wrong, or that nobody keeps right."""
    seen = facts.clock
    if seen is None:
        return
    keep = "apt install chrony (or systemd-timesyncd), then chronyc tracking"
    if abs(seen.stepped) > APART:
        yield Finding(
            "clock-off",
            CRITICAL if abs(seen.stepped) > 60_000 else WARNING,
            f"the wall clock is {format_duration(_seconds(abs(seen.stepped)))} "
            f"{'ahead of' if seen.stepped > 0 else 'behind'} where it was when policyd last wrote",
            "limits and bans go on by elapsed time, but times in refusals, logs and mail headers are wrong",
            keep,
        )
    elif (
        seen.from_hardware is not None
        and abs(seen.from_hardware) % 3600 > HARDWARE_APART < 3600 - abs(seen.from_hardware) % 3600
    ):
        yield Finding(
            "clock-off",
            WARNING,
            f"the wall clock and the hardware clock are {abs(seen.from_hardware)} s apart",
            "one of them is wrong, and after the next start it may be the one that counts",
            keep,
        )
    if seen.synchronised is False:
        yield Finding(
            "clock-unsynchronised",
            WARNING,
            "nothing keeps the clock of this machine right (adjtimex(2) says so)",
            "times in refusals, logs and mail headers drift, and DNSSEC fails at last",
            keep,
        )


def _seconds(ms: int) -> int:
    return (ms + 500) // 1000 * 1000


def disks(facts: Facts) -> Iterator[Finding]:
    """Little room."""
    for disk in facts.disks:
        if disk.free < disk.needed:
            yield Finding(
                "disk-full",
                CRITICAL if disk.free < disk.needed / 10 else WARNING,
                f"{format_size(disk.free)} are free in {disk.path}, for {disk.what}, "
                f"and {format_size(disk.needed)} should be",
                "when nothing is left policyd counts in memory, and Postfix takes no mail",
                f"df -h {shlex.quote(disk.path)}; policyctl db size; then make room, or lower [keep] max_size",
            )
        elif disk.free_inodes < FEW_INODES:
            yield Finding(
                "disk-full",
                WARNING,
                f"{disk.free_inodes:.1%} of the inodes are free in {disk.path}, for {disk.what}",
                "without inodes no file can be made, however much room there is",
                f"df -i {shlex.quote(disk.path)}",
            )


def database(facts: Facts) -> Iterator[Finding]:
    """A file that is not sound, too large, or held up."""
    seen = facts.database
    if seen is None:
        return
    if seen.problems:
        yield Finding(
            "database-damaged",
            CRITICAL,
            f"{seen.path}: {seen.problems[0]}"
            + (f" (and {len(seen.problems) - 1} more)" if len(seen.problems) > 1 else ""),
            "counts, bans and records in it cannot be relied on",
            "policyctl db check; then stop policyd, keep the file, policyctl db restore BACKUP",
        )
    if facts.config is not None and seen.size > facts.config.keep.max_size:
        yield Finding(
            "database-large",
            WARNING,
            f"{seen.path} has {format_size(seen.size)}, more than [keep] max_size {format_size(facts.config.keep.max_size)}",
            "what may be dropped is dropped already: the rest is counts, facts and bans, or room that is not given back",
            "policyctl db size; policyctl db compact while policyd is stopped gives unused room back",
        )
    if seen.wal > LONG_WAL:
        yield Finding(
            "wal-large",
            WARNING,
            f"{seen.path}-wal has {format_size(seen.wal)}",
            "something reads an old state of the database and keeps it from being written together: it grows on",
            f"fuser -v {shlex.quote(seen.path)}; end the reader (a policyctl or sqlite3 that hangs)",
        )


def backup(facts: Facts) -> Iterator[Finding]:
    """No copy, or an old one."""
    seen = facts.database
    if seen is None or not seen.oldest or seen.now - seen.oldest < BACKUP_AGE:
        return
    if seen.now - seen.last_backup > BACKUP_AGE:
        age = format_duration((seen.now - seen.last_backup) // DAY * DAY)
        yield Finding(
            "no-backup",
            WARNING,
            f"the last backup of {seen.path} is {age} old"
            if seen.last_backup
            else f"{seen.path} was never backed up",
            "bans, limits and records would be lost with the disk",
            "policyctl db backup /var/backups/policyd.$(date +%F).db, daily by cron or a systemd timer",
        )


def versions(facts: Facts) -> Iterator[Finding]:
    """Software with known holes."""
    for software in facts.software:
        for hole in holes(software, facts.postfix.values if facts.postfix is not None else {}):
            shown = software.debian or software.version
            yield Finding(
                "known-hole",
                WARNING,
                f"{software.name} {shown}: {hole.id}, {hole.what}",
                hole.why,
                hole.mend or f"apt update && apt install --only-upgrade {hole.package}",
            )


def unseen(facts: Facts) -> Iterator[Finding]:
    """What could not be looked at."""
    for source, why in facts.unseen.items():
        yield Finding(
            "unseen",
            UNKNOWN,
            f"the {source} could not be looked at: {why}",
            "what is wrong there is not told",
            "run policyctl doctor as root, on the machine where Postfix and policyd run",
        )


RULES = (resolver, sick_lists, clock, disks, database, backup, versions, unseen)
