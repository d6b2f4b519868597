"""policyd-rate-limit's configuration (YAML) and counts (SQLite), read."""

from __future__ import annotations

import importlib
import ipaddress
import json
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from policyd.cli.import_parts import Imported, Used, merged
from policyd.errors import UserError
from policyd.units import MAX_AMOUNT, MAX_WINDOW, MIN_WINDOW, SECOND, Limit

#: Rows of the database that are read at the most.
MOST_ROWS = 1_000_000
#: What count_mode means: each recipient by itself, recipients at DATA, messages.
_UNITS = {0: "recipients", 1: "recipients", 2: "messages"}
_DEFER = ("defer", "4", "greylist")


def read(path: str, login: Callable[[str], str]) -> Imported:
    """The policy of a configuration. ``login`` gives the account that a name means.

    :raises UserError: it cannot be read, or is none.
    """
    data = _yaml(path)
    found = Imported("policyd-rate-limit")
    found.unit = _UNITS.get(data.get("count_mode", 0), "recipients")
    default = _limits(data.get("limits", []), found.unit, f"{path}: limits")
    if data.get("limit_by_sasl", True):
        found.tiers["imported"] = (default, [])
    action = str(data.get("fail_action", "defer_if_permit")).strip().lower()
    found.keys = [
        f"on_breach = {json.dumps('hold' if action.startswith('hold') else 'defer' if action.startswith(_DEFER) else 'reject')}"
    ]
    # It knows no mail among the site's own domains.
    found.keys.append('count = "all"')
    written = json.dumps([str(limit) for limit in default])
    if data.get("limit_by_sender"):
        found.checks.append(
            f'[[check]]\nuse = "quota"\nname = "by-sender"\nper = "sender"\nmode = "shadow"\nlimits = {written}'
        )
    if data.get("limit_by_ip"):
        found.checks.append(
            f'[[check]]\nuse = "quota"\nname = "by-client"\nper = "client"\nmode = "shadow"\nlimits = {written}'
        )
        if data.get("limited_networks"):
            found.notes.append(
                'limited_networks: the check by-client counts every client; give the others an allow, or for = "submission"'
            )
    for name, limits in _mapping(data.get("limits_by_id"), f"{path}: limits_by_id").items():
        _own(found, str(name), _limits(limits, found.unit, f"{path}: limits_by_id {name}"), login)
    if data.get("sql_limits_by_id"):
        found.notes.append(
            "sql_limits_by_id: what stands in that database is not taken over; 'policyctl quota set' for each, or policyctl load"
        )
    if data.get("report"):
        found.notes.append("report_to: write [[alert]] into policyd.toml for what is to be told to whom")
    return found


def _own(found: Imported, name: str, limits: list[Limit], login: Callable[[str], str]) -> None:
    if not _is_address(name):
        try:
            found.give(login(name), limits, {found.unit})
        except ValueError as error:
            found.notes.append(f"limits_by_id: {error}")
        return
    found.notes.append(
        f"limits_by_id: {name} is a client, and policyd has limits of their own for accounts alone; "
        f"'policyctl allow client {name}' lets it pass, or write a [[check]] with per = \"client\""
    )


def _yaml(path: str) -> dict[str, Any]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ModuleNotFoundError:
        raise UserError(
            "reading YAML needs the Python module yaml; install it with 'apt install python3-yaml'"
        ) from None
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}; name policyd-rate-limit.yaml") from None
    if not isinstance(data, dict) or "limits" not in data:
        raise UserError(
            f"{path} has no limits and so is no configuration of policyd-rate-limit; name policyd-rate-limit.yaml"
        )
    return data


def _mapping(value: object, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where} is no mapping; correct it, or leave it out")
    return value


def _limits(value: object, unit: str, where: str) -> list[Limit]:
    """``[[number, seconds], ...]``."""
    found = []
    for pair in value if isinstance(value, list) else [value]:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(part, int) and not isinstance(part, bool) for part in pair)
            or not (0 <= pair[0] <= MAX_AMOUNT and MIN_WINDOW <= pair[1] * SECOND <= MAX_WINDOW)
        ):
            raise UserError(f"{where}: {pair!r} is no pair of a number and seconds; write [10, 60]")
        found.append(Limit(pair[0], unit, pair[1] * SECOND))
    return merged(found)


def read_counts(path: str, found: Imported, login: Callable[[str], str], now: int) -> None:
    """Add what its database says was used, as far as a limit still looks at it. ``now`` is wall time, ms.

    :raises UserError: it cannot be read, or is none.
    """
    all_limits = [
        *(limit for limits, _ in found.tiers.values() for limit in limits),
        *(each for own in found.own.values() for each in own),
    ]
    since = now // SECOND - max((limit.window for limit in all_limits), default=0) // SECOND
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                "SELECT id, date, recipient_count FROM mail_count WHERE date >= ? ORDER BY date LIMIT ?",
                (since, MOST_ROWS),
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{path}: {error}; name the database of policyd-rate-limit (sqlite_config)") from None
    skipped = 0
    for name, date, recipients in rows:
        if _is_address(str(name)):
            skipped += 1
            continue
        try:
            user = login(str(name))
        except ValueError:
            skipped += 1
            continue
        amount = 1 if found.unit == "messages" else int(recipients or 1)
        found.used.append(Used(user, min(int(date) * SECOND, now), amount))
    if skipped:
        found.notes.append(f"{path}: {skipped} counts of clients are not taken over; those of accounts are")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
