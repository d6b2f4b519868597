"""Accounts as a file: CSV or JSON lines, out and in again. Times stand there as wall time, so that a file fits another server."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from policyd.accounts import BY_HAND, LEARNED, PROMOTED
from policyd.cli.common import Times, did_you_mean, printable
from policyd.errors import UserError
from policyd.tiers import Tiers
from policyd.units import MAX_AMOUNT

if TYPE_CHECKING:
    from policyd.store.account_rows import Known

CSV, JSON_LINES = FORMATS = "csv", "jsonl"
#: What a file may say of an account: the name there, and the column of the table account.
FIELDS = {
    "user": "user",
    "tier": "tier",
    "tier_by": "tier_by",
    "tier_since": "tier_since",
    "probation_until": "probation_until",
    "first_seen": "first_at",
    "last_seen": "last_at",
    "messages": "messages",
    "last_incident": "incident_at",
    "strikes": "strikes",
    "note": "note",
}
_TIMES = ("tier_since", "probation_until", "first_seen", "last_seen", "last_incident")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A line can be no longer, characters.
_LONGEST = 100_000


class Wish(NamedTuple):
    """What a line wants an account to be; columns that it does not name stay as they are."""

    line: int
    user: str
    #: By column; times are ledger time.
    columns: dict[str, Any]


def lines_of(accounts: Iterable[Known], format_: str, times: Times) -> Iterator[str]:
    """The lines of a file with these accounts."""
    if format_ == JSON_LINES:
        for known in accounts:
            yield json.dumps(_record(known, times))
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="")
    writer.writerow(FIELDS)
    yield buffer.getvalue()
    for known in accounts:
        buffer.seek(0)
        buffer.truncate()
        record = _record(known, times)
        record["strikes"] = " ".join(filter(None, record["strikes"]))
        writer.writerow(["" if value is None else value for value in record.values()])
        yield buffer.getvalue()


def _record(known: Known, times: Times) -> dict[str, Any]:
    account, note = known
    return {
        "user": account.user,
        "tier": account.tier,
        "tier_by": account.tier_by,
        "tier_since": times.iso(account.tier_since),
        "probation_until": times.iso(account.probation_until),
        "first_seen": times.iso(account.first_at),
        "last_seen": times.iso(account.last_at),
        "messages": account.messages,
        "last_incident": times.iso(account.incident_at),
        "strikes": [times.iso(at) for at in account.strikes],
        "note": note,
    }


class Reader:
    """Reads such a file line by line; what is wrong is put into ``problems``, and reading goes on."""

    def __init__(
        self,
        file: IO[bytes],
        format_: str,
        times: Times,
        tiers: Tiers,
        login: Callable[[str], str],
        told: Callable[[str], None],
    ) -> None:
        """
        :param login: the account that a name means; :class:`ValueError` when it can be none.
        :param told: takes each problem, with its line.
        """
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        self._format = format_
        self._times = times
        self._tiers = tiers
        self._login = login
        self._told = told

    def __iter__(self) -> Iterator[Wish]:
        """
        :raises UserError: the file is none of its format.
        """
        read = self._of_csv if self._format == CSV else self._of_json
        try:
            for number, values in read():
                try:
                    yield self._wish(number, values)
                except ValueError as error:
                    self._told(f"line {number}: {error}")
        except UnicodeDecodeError as error:
            raise UserError(f"is no UTF-8: {error.reason}; save it as UTF-8") from None
        finally:
            self._text.detach()

    def _of_json(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines():
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if isinstance(values, dict):
                yield number, values
            else:
                self._told(f"line {number}: is no JSON object")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Each line with its number; what has no end of line is not read to its end."""
        for number in itertools.count(1):
            line = self._text.readline(_LONGEST + 1)
            if len(line) > _LONGEST:
                raise UserError(
                    f"line {number}: is longer than {_LONGEST} characters; is this a list of accounts?"
                )
            if not line:
                return
            yield number, line

    def _of_csv(self) -> Iterator[tuple[int, dict[str, Any]]]:
        lines = (line for _, line in self._lines())
        first = next(lines, "")
        # What a spreadsheet saves where the comma stands in numbers.
        delimiter = ";" if ";" in first and "," not in first else ","
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if "user" not in names:
            raise UserError(f"has no column 'user' in its first line; the columns are {', '.join(FIELDS)}")
        _check_names(names)
        if twice := next((name for name in FIELDS if names.count(name) > 1), None):
            raise UserError(f"has the column {twice!r} twice in its first line; leave one of them out")
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            for cells in reader:
                number = reader.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(names):
                    self._told(f"line {number}: has {len(cells)} columns, the first line has {len(names)}")
                    continue
                yield number, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"line {reader.line_num + 1}: {error}") from None

    def _wish(self, number: int, values: dict[str, Any]) -> Wish:
        _check_names(values)
        if not isinstance(values.get("user"), str) or not values["user"].strip():
            raise ValueError("names no user")
        columns: dict[str, Any] = {}
        for name, value in values.items():
            if name in _TIMES:
                columns[FIELDS[name]] = self._time(name, value)
            elif name == "messages":
                columns[name] = _number(value)
            elif name == "strikes":
                each = value.split() if isinstance(value, str) else value or []
                if not isinstance(each, list):
                    raise ValueError("'strikes' must be times")
                columns[name] = json.dumps(
                    [self._time(name, moment) for moment in each], separators=(",", ":")
                )
            elif name != "user":
                columns[name] = _text(name, value)
        self._check_tier(columns)
        return Wish(number, self._login(values["user"]), columns)

    def _check_tier(self, columns: dict[str, Any]) -> None:
        tier = columns.get("tier")
        if tier is None:
            if columns.get("tier_by") or columns.get("tier_since"):
                raise ValueError("says who put the account into its tier, or since when, and not which tier")
            columns.pop("tier_by", None)
            columns.pop("tier_since", None)
        elif not tier:
            columns["tier_by"] = ""
        elif tier not in self._tiers.all:
            near = did_you_mean(tier, self._tiers.all)
            raise ValueError(f"there is no tier {tier!r}{near or '; there is ' + ', '.join(self._tiers.all)}")
        elif columns.setdefault("tier_by", BY_HAND) not in (BY_HAND, LEARNED, PROMOTED):
            if columns["tier_by"]:
                raise ValueError(f"'tier_by' must be {BY_HAND}, {LEARNED} or {PROMOTED}")
            columns["tier_by"] = BY_HAND

    def _time(self, name: str, value: object) -> int:
        if value is None or value == "":
            return 0
        try:
            moment = datetime.fromisoformat(str(value).strip())
            if moment.tzinfo is None or moment <= _EPOCH or moment.year > 2900:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{name!r} must be a time with its zone, such as 2026-12-01T18:30:00+01:00"
            ) from None
        return max(1, (moment - _EPOCH) // timedelta(milliseconds=1) - self._times.ahead)


def _check_names(names: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in FIELDS]:
        near = did_you_mean(unknown[0], FIELDS)
        raise (UserError if isinstance(names, list) else ValueError)(
            f"has a column {unknown[0][:60]!r}{near or '; known are ' + ', '.join(FIELDS)}"
        )


def _number(value: object) -> int:
    text = str(value if value is not None else "").strip() or "0"
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or len(text) > 16:
        raise ValueError("'messages' must be a whole number")
    return min(int(text), MAX_AMOUNT)


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a text")
    return printable(value, name)
