"""Facts from the mail log of the last day: who uses sendmail(1), and whether Postfix could ask."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from policyd.doctor.facts import MailLog

FILES = ("/var/log/mail.log", "/var/log/maillog")
#: Octets from the end of the log that are read.
MOST = 64 * 1024 * 1024
_PICKUP = re.compile(r"/pickup\[\d+\]: \w+: uid=(\d+) from=")
_FAILURE = "problem talking to server "
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?")
_TRADITIONAL = re.compile(r"([A-Z][a-z]{2}) +(\d+) (\d\d):(\d\d):(\d\d) ")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def look(maillog_file: str, addresses: Collection[str], now: datetime) -> MailLog | None:
    """What the log says; ``None`` when there is none.

    :param maillog_file: Postfix's own log, ``""`` when it uses syslog.
    :param addresses: those of policyd, as main.cf names them.
    :param now: the time, with a zone.
    :raises OSError: it cannot be read.
    """
    files = [maillog_file] if maillog_file.startswith("/") and not maillog_file.startswith("/dev/") else FILES
    for path in files:
        if os.path.exists(path):
            with open(path, "rb") as file:
                file.seek(max(0, os.stat(path).st_size - MOST))
                lines = file.read(MOST).decode("utf-8", "replace").splitlines()
            return read(path, lines, addresses, now)
    lines = _journal()
    return read("the journal", lines, addresses, now) if lines else None


def _journal() -> list[str]:
    command = [
        "journalctl",
        "-q",
        "-o",
        "short-iso",
        "-S",
        "-24h",
        "-g",
        f"uid=|{_FAILURE}",
        "-u",
        "postfix*",
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout[-MOST:].splitlines()


def read(place: str, lines: Iterable[str], addresses: Collection[str], now: datetime) -> MailLog:
    """What the lines of a log say, of which those without a time that can be read count as of now."""
    pickup: dict[tuple[int, str], int] = {}
    failures = 0
    names = [address.partition(":")[2].encode("ascii", "replace").decode() for address in addresses]
    for line in lines:
        found = _PICKUP.search(line)
        failed = _FAILURE in line and any(name and name in line for name in names)
        if not found and not failed:
            continue
        age = now - (_time(line, now) or now)
        if found and age < timedelta(days=1):
            uid = int(found[1])
            key = (uid, _user(uid))
            pickup[key] = pickup.get(key, 0) + 1
        failures += failed and age < timedelta(hours=1)
    return MailLog(place, pickup, failures)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _time(line: str, now: datetime) -> datetime | None:
    iso = _ISO.match(line)
    if iso:
        try:
            found = datetime.fromisoformat(iso[0])
        except ValueError:
            return None
        return found if found.tzinfo else found.replace(tzinfo=now.tzinfo)
    parts = _TRADITIONAL.match(line)
    if not parts or parts[1] not in _MONTHS:
        return None
    day, hour, minute, second = map(int, parts.groups()[1:])
    try:
        # The log has no year, and what lies ahead was written in the one before.
        found = datetime(now.year, _MONTHS.index(parts[1]) + 1, day, hour, minute, second, tzinfo=now.tzinfo)
        return found if found <= now + timedelta(days=1) else found.replace(year=now.year - 1)
    except ValueError:
        return None
