"""What ban, allow and greylist allow have in common: a table of kinds and values with reason, author and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from policyd.answer import escape
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    canonical_user,
    did_you_mean,
    usage_errors,
    values_of,
)
from policyd.errors import NotFound
from policyd.match import domain_of
from policyd.steering import Entry, Listing, canonical_value, client_network

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS = ("kind", "value", "until", "author", "set", "reason")


class _Words(NamedTuple):
    """How a table is spoken of: what its entries are, the actions in the history, the list, and an empty list."""

    done: str
    add: str
    remove: str
    listed: str
    none: str


_WORDS = {
    "ban": _Words("banned", "ban", "unban", "bans", "nothing is banned"),
    "allow": _Words("allowed", "allow", "unallow", "allows", "nothing is allowed beyond the configuration"),
    "greylist_allow": _Words(
        "spared greylisting",
        "greylist allow",
        "greylist unallow",
        "greylist allows",
        "nothing is spared greylisting beyond the configuration",
    ),
}


def canonical(session: Session, kind: str, value: str) -> str:
    """The form in which ``value`` is kept; a usage error when it can be none of its kind."""
    if kind == "user":
        return canonical_user(session, value)
    with usage_errors():
        return canonical_value(kind, value)


def shown(value: str) -> str:
    """A value for people; the null sender is ``<>``."""
    return escape(value) or "<>"


def add(
    session: Session,
    table: str,
    kind: str,
    arguments: Sequence[str],
    terms: Terms,
    objection: Callable[[Any, str], None],
) -> None:
    """Set an entry for each value, all or none.

    :param objection: raises when the value (second) must not be set in this database (first).
    """
    from policyd.store import admin, dump

    values = list(dict.fromkeys(canonical(session, kind, value) for value in values_of(arguments)))
    words = _WORDS[table]
    records, lines = [], []
    with session.changing() as connection:
        for value in values:
            objection(connection, value)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            times = Times.of(connection)
            for value in values:
                expires = change.expires(terms.lasts)
                entry = Entry(kind, value, terms.reason, terms.author, change.now, expires)
                before = change.put(table, entry)
                until = f"until {times.until(expires)}"
                change.record(f"{words.add} {kind}", value or "<>", until)
                records.append(dump.record(table, entry, times.ahead))
                instead = (
                    f" (before: until {times.until(before.expires_at)}, by {escape(before.author)})"
                    if before
                    else ""
                )
                lines.append(f"{terms.prefix}{words.done} {kind} {shown(value)}, {until}{instead}")
    session.done({"dry_run": terms.dry_run, "set": records}, *lines)


def remove(session: Session, table: str, kind: str, arguments: Sequence[str], terms: Terms) -> list[str]:
    """Take the entries of all values back, or of none when one of them has none; the values."""
    from policyd.store import admin, dump

    values = list(dict.fromkeys(canonical(session, kind, value) for value in values_of(arguments)))
    words = _WORDS[table]
    records, lines = [], []
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        times = Times.of(connection)
        for value in values:
            entry = change.drop(table, kind, value)
            if entry is None:
                raise NotFound(_missing(table, kind, value, admin.rows(connection, table, change.now), times))
            change.record(
                f"{words.remove} {kind}", value or "<>", f"was until {times.until(entry.expires_at)}"
            )
            records.append(dump.record(table, entry, times.ahead))
            lines.append(f"{terms.prefix}no longer {words.done}: {kind} {shown(value)}")
    session.done({"dry_run": terms.dry_run, "removed": records}, *lines)
    return values


class Shown(NamedTuple):
    """A line of a list: for programs, and for people by :data:`_COLUMNS`."""

    record: dict[str, Any]
    row: tuple[str, ...]


def listing(
    session: Session,
    table: str,
    kind: str | None,
    values: Sequence[str] = (),
    also: Callable[[Any, Times], list[Shown]] | None = None,
    none: str = "",
) -> None:
    """Print the entries in force: all, of one kind, or of one kind and these values.

    :param also: more of what is in force, which is no entry of this table.
    :param none: what to say when there is nothing, if not the table's own words.
    """
    from policyd.store import admin, dump

    wanted = [canonical(session, kind, value) for value in values] if kind else []
    with session.reading() as connection:
        times = Times.of(connection)
        every = admin.rows(connection, table, times.now)
        more = also(connection, times) if also is not None else []
    entries = [entry for entry in every if kind in (None, entry.kind)]
    for value in wanted:
        if value not in [entry.value for entry in entries]:
            raise NotFound(_missing(table, str(kind), value, every, times))
    if wanted:
        entries = [entry for entry in entries if entry.value in wanted]
    session.show(
        [*(dump.record(table, entry, times.ahead) for entry in entries), *(each.record for each in more)],
        _COLUMNS,
        [
            *(
                (
                    entry.kind,
                    entry.value or "<>",
                    times.until(entry.expires_at),
                    entry.author,
                    times.text(entry.created_at),
                    entry.reason,
                )
                for entry in entries
            ),
            *(each.row for each in more),
        ],
        none or _WORDS[table].none,
    )


def warn_without(session: Session, use: str, table: str) -> None:
    """Remark that no check of the configuration asks for these entries."""
    noun = _WORDS[table].add
    modes = {check.mode for check in session.config.checks if check.use == use}
    if not modes:
        if session.rescued is not None:
            return
        session.note(
            f"{session.config_path} has no check 'use = \"{use}\"': no {noun} has an effect until it has one"
        )
    elif "enforce" not in modes:
        session.note(
            f"the check '{use}' is in mode {modes.pop()}: no {noun} has an effect until it is in enforce"
        )


def _missing(table: str, kind: str, value: str, there: list[Entry], times: Times) -> str:
    words = _WORDS[table]
    wider = _around(kind, value, there, times.now)
    if wider is not None:
        until = f"until {times.until(wider.expires_at)}"
        return (
            f"{kind} {shown(value)} is not {words.done} itself: {wider.kind} {shown(wider.value)} is, by "
            f"{escape(wider.author) or 'somebody'} {until}, and that covers it; "
            f"'policyctl {words.remove} {wider.kind} {shown(wider.value)}' takes back the whole of it"
        )
    near = did_you_mean(value, [entry.value for entry in there if entry.kind == kind], 0.85)
    return f"{kind} {shown(value)} is not {words.done}{near or f'; policyctl {words.listed} lists what is'}"


def _around(kind: str, value: str, there: list[Entry], now: int) -> Entry | None:
    """The smallest entry in force that covers ``value`` without being for it alone."""
    listing = Listing()
    for entry in there:
        listing.put(entry)
    if kind == "domain":
        return listing.domain(value, now)
    if kind == "sender":
        return listing.domain(domain_of(value), now) if value else None
    if kind != "client":
        return None
    network = client_network(value)
    if network is None:
        return listing.domain(value, now, "client")
    around = [
        (other.prefixlen, entry)
        for entry in there
        if entry.kind == "client"
        and (other := client_network(entry.value)) is not None
        and other.version == network.version
        and network.subnet_of(other)  # type: ignore[arg-type]
    ]
    return max(around)[1] if around else None


def kind_argument(kinds: Sequence[str], required: bool = True) -> Callable[[F], F]:
    """The argument KIND."""
    return click.argument("kind", type=click.Choice(list(kinds)), metavar="|".join(kinds), required=required)


def values_argument(command: F) -> F:
    """The argument VALUE: one or several; ``-`` reads them from stdin, one a line."""
    return click.argument("values", nargs=-1, required=True, metavar="VALUE...")(command)
