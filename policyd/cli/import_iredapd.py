"""iRedAPD's table ``throttle``, read from what its SQL server prints: CSV, tab-separated, or a SQLite file.

Accounts there are addresses, ``@domain``, ``@.`` (everybody), and forms that policyd has no limits for. A larger priority wins.
``0`` means unlimited, ``-1`` that a setting of lower priority is asked. ``max_msgs`` counts recipients there.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import quote

from policyd.cli.import_parts import Imported
from policyd.errors import UserError
from policyd.units import MAX_WINDOW, MIN_WINDOW, SECOND, Limit

_COLUMNS = ("account", "kind", "priority", "period", "max_msgs", "max_quota")
_EVERYBODY = "@."
_HOW = "mysql -B iredapd -e 'SELECT * FROM throttle' > throttle.tsv, or psql --csv -d iredapd -c 'SELECT * FROM throttle'"
MOST = 64 * 1024 * 1024


class _Setting(NamedTuple):
    account: str
    priority: int
    window: int
    #: -1: ask the next one; 0: unlimited.
    recipients: int
    octets: int

    @property
    def limits(self) -> list[Limit]:
        """What it limits."""
        pairs = ((self.recipients, "recipients"), (self.octets, "bytes"))
        return [Limit(amount, unit, self.window) for amount, unit in pairs if amount > 0]

    @property
    def units(self) -> set[str]:
        """The units that it decides about, unlimited or not."""
        return {
            unit for amount, unit in ((self.recipients, "recipients"), (self.octets, "bytes")) if amount >= 0
        }


def read(path: str, login: Callable[[str], str]) -> Imported:
    """The policy of the table. ``login`` gives the account that a name means.

    :raises UserError: it cannot be read, or is none.
    """
    found = Imported("iRedAPD")
    # Its plugin always refuses for good.
    found.keys = ['on_breach = "reject"', 'count = "all"']
    settings: dict[str, _Setting] = {}
    for number, row in enumerate(_rows(path), 2):
        setting = _setting(row, f"{path}, row {number}", found.notes)
        if setting is not None:
            settings[setting.account] = setting
    everybody = settings.pop(_EVERYBODY, None)
    found.tiers["imported"] = (everybody.limits if everybody else [], [])
    for setting in sorted(settings.values(), key=lambda each: (-each.priority, each.account)):
        domain = re.fullmatch(r"@([\w-]+(?:\.[\w-]+)*)", setting.account)
        if domain:
            rest = [limit for limit in found.tiers["imported"][0] if limit.unit not in setting.units]
            name = re.sub(r"[^a-z0-9]+", "-", domain[1]).strip("-")
            found.tiers[name] = ([*setting.limits, *rest], [setting.account])
    for setting in settings.values():
        if re.fullmatch(r"[^@\s*]+@[^@\s*]+", setting.account):
            try:
                found.give(login(setting.account), setting.limits, setting.units)
            except ValueError as error:
                found.notes.append(str(error))
        elif not re.fullmatch(r"@[\w-]+(?:\.[\w-]+)*", setting.account):
            found.notes.append(
                f'{setting.account}: policyd has no limits for this form of account; write a [[check]] with use = "quota" '
                'and per = "client" or "sender-domain"'
            )
    return found


def _setting(row: Mapping[str, str], where: str, notes: list[str]) -> _Setting | None:
    account = row["account"].strip().lower()
    if row["kind"] != "outbound":
        notes.append(
            f'{account}: limits of {row["kind"]} mail are not taken over; write a [[check]] with for = "mx" and per = "client"'
        )
        return None
    try:
        period, recipients, octets = (int(row[name]) for name in ("period", "max_msgs", "max_quota"))
        size, most = (int(row.get(name) or -1) for name in ("msg_size", "max_rcpts"))
        setting = _Setting(account, int(row["priority"]), period * SECOND, recipients, octets)
    except ValueError as error:
        raise UserError(f"{where}: {error}; {_HOW}") from None
    if size > 0:
        notes.append(f"{account}: msg_size is Postfix's to limit: postconf -e 'message_size_limit = {size}'")
    if most > 0:
        notes.append(
            f"{account}: max_rcpts is Postfix's to limit: postconf -e 'smtpd_recipient_limit = {most}'"
        )
    if setting.limits and not MIN_WINDOW <= setting.window <= MAX_WINDOW:
        notes.append(
            f"{account}: period {period} is no window from 1 second to 366 days, so its limits are left out"
        )
        return None
    return setting


def _rows(path: str) -> list[dict[str, str]]:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_HOW}") from None
    if data.startswith(b"SQLite format 3\0"):
        return _of_sqlite(path)
    lines = data.decode("utf-8", "replace").splitlines()
    tabs = "\t" in (lines[0] if lines else "")
    rows = list(
        csv.DictReader(
            lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        )
    )
    if not lines or (not rows and not set(_COLUMNS) <= set(re.split(r"[\t,]", lines[0]))):
        raise UserError(f"{path} is no table with a head; make one with {_HOW}")
    for number, row in enumerate(rows, 2):
        if any(row.get(name) is None for name in _COLUMNS):
            raise UserError(
                f"{path}, row {number}: a column is missing of {', '.join(_COLUMNS)}; make it with {_HOW}"
            )
    return [{name: value or "" for name, value in row.items() if name is not None} for row in rows]


def _of_sqlite(path: str) -> list[dict[str, str]]:
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
        try:
            cursor = connection.execute("SELECT * FROM throttle")
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, map(str, row), strict=True)) for row in cursor]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{path}: {error}; name a database with the table throttle") from None
    if missing := [name for name in _COLUMNS if name not in names]:
        raise UserError(
            f"{path}: the table throttle has no column {json.dumps(missing[0])}; name the database of iRedAPD"
        )
    return rows
