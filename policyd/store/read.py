"""What policyctl asks the database about decisions. Nothing here writes.

Decisions are read one partition at a time, newest first, so that a LIMIT ends the search early. Values are always bound; the name
of a partition's table is the only part of a statement that is filled in.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from policyd.match import NetworkSet
from policyd.request import ASKED_BY_HAND
from policyd.steering import client_network
from policyd.store import partitions
from policyd.store.partitions import Partition

_LAST = 2**63 - 1


class Logged(NamedTuple):
    """A row of the decision log; the columns are explained in ``schema/decision.sql``."""

    id: int
    at: int
    wall_at: int
    stage: str
    direction: str
    listener: str
    context: str
    instance: str
    queue_id: str
    user: str
    client: str
    client_name: str
    helo: str
    sender: str
    recipient: str
    recipient_count: int
    size: int
    action: str
    verdict: str
    by: str
    reason: str
    ref: str | None
    would: str
    detail: str
    charges: str
    policy: str
    micros: int
    mark: str


@dataclass(frozen=True)
class Wanted:
    """Which decisions are meant; an empty field asks for nothing. Times are ledger time in ms, ``until`` is not in it."""

    user: str = ""
    #: An address, a network, or a host name.
    client: str = ""
    #: An address in any case, or ``@domain``.
    sender: str = ""
    recipient: str = ""
    #: A verdict (pass, hold, refuse) or the action's first word (DUNNO, 450).
    action: str = ""
    #: The check that decided, or would have in shadow.
    check: str = ""
    ref: str = ""
    queue_id: str = ""
    instance: str = ""
    stage: str = ""
    direction: str = ""
    since: int = 0
    until: int = 0
    #: Only rows with an id above this.
    after: int = 0


_COLUMNS = ", ".join(Logged._fields)
#: What the log can be grouped by, as SQL.
GROUPS = {
    "user": "user",
    "client": "client",
    "sender": "lower(sender)",
    "sender-domain": "lower(substr(sender, instr(sender, '@') + 1))",
    "recipient": "lower(recipient)",
    "action": "CASE WHEN instr(action, ' ') THEN substr(action, 1, instr(action, ' ') - 1) ELSE action END",
    "verdict": "verdict",
    "check": "by",
    "stage": "stage",
    "direction": "direction",
    "policy": "policy",
    "listener": "listener",
}


def decisions(connection: sqlite3.Connection, wanted: Wanted, limit: int) -> list[Logged]:
    """The newest ``limit`` decisions that are ``wanted``, newest first."""
    conditions, values = _conditions(connection, wanted)
    found: list[Logged] = []
    statement = _filled(
        "SELECT {columns} FROM {table} WHERE {where} ORDER BY id DESC LIMIT :limit",
        columns=_COLUMNS,
        where=conditions,
    )
    with snapshot(connection):
        for partition in _partitions(connection, wanted):
            values["limit"] = limit - len(found)
            bounds = _bounds(connection, partition, wanted)
            found += [
                Logged(*row)
                for row in connection.execute(in_partition(partition, statement), values | bounds)
            ]
            if len(found) >= limit:
                break
    return found


class Group(NamedTuple):
    """Decisions that have one thing in common."""

    value: str
    decisions: int
    passed: int
    held: int
    refused: int
    #: Of messages that passed END-OF-MESSAGE, each once.
    recipients: int
    #: Wall clock of the newest, ms.
    last_wall: int


def grouped(connection: sqlite3.Connection, wanted: Wanted, by: str) -> list[Group]:
    """All decisions that are ``wanted``, grouped by one of :data:`GROUPS`, the largest group first."""
    conditions, values = _conditions(connection, wanted)
    statement = _filled(
        "SELECT {group}, count(*), sum(verdict = 'pass'), sum(verdict = 'hold'), sum(verdict = 'refuse'), "
        "sum(CASE WHEN stage = 'END-OF-MESSAGE' AND verdict = 'pass' AND mark NOT LIKE 'repeat%' "
        "THEN recipient_count ELSE 0 END), max(wall_at) FROM {table} WHERE {where} GROUP BY 1",
        group=GROUPS[by],
        where=conditions,
    )
    groups: dict[str, Group] = {}
    with snapshot(connection):
        for partition in _partitions(connection, wanted):
            bounds = _bounds(connection, partition, wanted)
            for row in connection.execute(in_partition(partition, statement), values | bounds):
                group = Group(*row)
                groups[group.value] = _sum(groups[group.value], group) if group.value in groups else group
    return sorted(groups.values(), key=lambda group: (-group.decisions, group.value))


def _sum(one: Group, other: Group) -> Group:
    return Group(
        one.value,
        one.decisions + other.decisions,
        one.passed + other.passed,
        one.held + other.held,
        one.refused + other.refused,
        one.recipients + other.recipients,
        max(one.last_wall, other.last_wall),
    )


class Arrived(NamedTuple):
    """How often a stage was asked about, by direction and verdict."""

    direction: str
    stage: str
    verdict: str
    times: int
    last_wall: int


def arrived(connection: sqlite3.Connection, since: int, at_most: int) -> tuple[list[Arrived], bool]:
    """What was asked since the ledger time ``since``, and whether that is all of it.

    Looks at the newest ``at_most`` decisions, whatever the load. What ``policyctl ask`` asked is left out.
    """
    totals: dict[tuple[str, str, str], tuple[int, int]] = {}
    with snapshot(connection):
        floor = max(0, newest_id(connection) - at_most)
        wanted = Wanted(since=since, after=floor)
        statement = (
            "SELECT direction, stage, verdict, count(*), max(wall_at) FROM {table} "
            "WHERE id >= :first AND substr(instance, 1, length(:by_hand)) <> :by_hand "
            "GROUP BY direction, stage, verdict"
        )
        for partition in _partitions(connection, wanted):
            values = {**_bounds(connection, partition, wanted), "by_hand": ASKED_BY_HAND}
            for direction, stage, verdict, times, last in connection.execute(
                in_partition(partition, statement), values
            ):
                before = totals.get((direction, stage, verdict), (0, 0))
                totals[direction, stage, verdict] = (before[0] + times, max(before[1], last))
        complete = not floor or _time_of(connection, floor) < since
    return [Arrived(*key, *total) for key, total in sorted(totals.items())], complete


class Shadowed(NamedTuple):
    """A decision of which a check or detector in shadow would have made another one."""

    at: int
    instance: str
    user: str
    client: str
    would: str


def shadowed(connection: sqlite3.Connection, since: int) -> Iterator[Shadowed]:
    """What would have been decided otherwise since the ledger time ``since``; day by day, the newest day first."""
    wanted = Wanted(since=since)
    statement = (
        "SELECT at, instance, user, client, would FROM {table} WHERE id >= :first AND at >= :since AND would <> '' "
        "ORDER BY id"
    )
    with snapshot(connection):
        for partition in _partitions(connection, wanted):
            values = {**_bounds(connection, partition, wanted), "since": since}
            yield from map(Shadowed._make, connection.execute(in_partition(partition, statement), values))


def accounts_of_queue_ids(
    connection: sqlite3.Connection, queue_ids: Sequence[str], since: int
) -> list[tuple[str, str, int]]:
    """Queue id, account and wall time (ms) of the newest decision of each account on each of ``queue_ids``, since the ledger
    time ``since``."""
    statement = (
        "SELECT queue_id, user, max(wall_at) FROM {table} WHERE id BETWEEN :first AND :last AND queue_id <> '' "
        "AND queue_id IN (SELECT value FROM json_each(:ids)) GROUP BY queue_id, user"
    )
    wanted = Wanted(since=since)
    found: list[tuple[str, str, int]] = []
    with snapshot(connection):
        for partition in _partitions(connection, wanted):
            values = {**_bounds(connection, partition, wanted), "ids": json.dumps(list(queue_ids))}
            found += connection.execute(in_partition(partition, statement), values).fetchall()
    return found


def by_ids(connection: sqlite3.Connection, ids: Sequence[int]) -> list[Logged]:
    """Those of the decisions with these ids that are kept, oldest first."""
    statement = _filled(
        "SELECT {columns} FROM {table} WHERE id IN (SELECT value FROM json_each(:ids))", columns=_COLUMNS
    )
    found: list[Logged] = []
    with snapshot(connection):
        for partition in _partitions(connection, Wanted(after=min(ids, default=_LAST) - 1)):
            rows = connection.execute(in_partition(partition, statement), {"ids": json.dumps(list(ids))})
            found += [Logged(*row) for row in rows]
    return sorted(found)


class Began(NamedTuple):
    """A suspension as it was told of when it began. Ledger time."""

    at: int
    facts: str


def suspension_began(connection: sqlite3.Connection, user: str, at: int) -> Began | None:
    """The last suspension of ``user`` that began up to the ledger time ``at``, of those that are still told of."""
    row = connection.execute(
        "SELECT at, facts FROM event WHERE kind = 'suspend' AND subject = ? AND resolved = 0 AND at <= ? "
        "ORDER BY id DESC LIMIT 1",
        (user, at),
    ).fetchone()
    return Began(*row) if row else None


def _time_of(connection: sqlite3.Connection, identifier: int) -> int:
    """The ledger time of the newest decision up to this id; 0 when there is none."""
    statement = "SELECT at FROM {table} WHERE id <= ? ORDER BY id DESC LIMIT 1"
    for partition in partitions.catalogue(connection):
        row = connection.execute(in_partition(partition, statement), (identifier,)).fetchone()
        if row is not None:
            return int(row[0])
    return 0


def newest_id(connection: sqlite3.Connection) -> int:
    """The id of the newest decision; 0 when there is none."""
    for partition in partitions.catalogue(connection):
        row = connection.execute(in_partition(partition, "SELECT max(id) FROM {table}")).fetchone()
        if row[0] is not None:
            return int(row[0])
    return 0


def _filled(template: str, **pieces: str) -> str:
    """``template`` with each ``{name}`` replaced by a fixed piece of SQL from this module."""
    for name, piece in pieces.items():
        template = template.replace("{" + name + "}", piece)
    return template


def in_partition(partition: Partition, template: str) -> str:
    """``template`` with ``{table}`` replaced by the partition's."""
    return _filled(template, table=partition.table)


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything read within shows one moment: no partition goes away between two statements."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _partitions(connection: sqlite3.Connection, wanted: Wanted) -> Iterator[Partition]:
    """The partitions that can hold what is wanted, newest first."""
    for partition in partitions.catalogue(connection):
        if partition.closed_at and (
            partition.closed_at < wanted.since or partition.first_id + partition.rows <= wanted.after
        ):
            return
        if not wanted.until or partition.opened_at < wanted.until:
            yield partition


def _bounds(connection: sqlite3.Connection, partition: Partition, wanted: Wanted) -> dict[str, int]:
    """The ids between which the rows lie whose time is wanted: ids and times rise together."""
    first = _first_at(connection, partition, wanted.since) if wanted.since > partition.opened_at else 0
    last = _first_at(connection, partition, wanted.until) - 1 if wanted.until else _LAST
    return {"first": max(first, wanted.after + 1), "last": last}


def _first_at(connection: sqlite3.Connection, partition: Partition, at: int) -> int:
    """The id of the first row at or after the ledger time ``at``; one above the last when there is none."""
    low, high = connection.execute(
        in_partition(partition, "SELECT min(id), max(id) + 1 FROM {table}")
    ).fetchone()
    if low is None:
        return 0
    statement = in_partition(partition, "SELECT id, at FROM {table} WHERE id >= ? ORDER BY id LIMIT 1")
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(statement, (middle,)).fetchone()
        if row is not None and row[1] < at:
            low = row[0] + 1
        else:
            high = middle
    return int(low)


def _conditions(connection: sqlite3.Connection, wanted: Wanted) -> tuple[str, dict[str, str | int]]:
    """WHERE, from fixed pieces, and the values it binds."""
    where = ["id BETWEEN :first AND :last"]
    values: dict[str, str | int] = {}
    for column in ("user", "stage", "direction", "queue_id", "instance", "ref"):
        value = getattr(wanted, column)
        if value:
            # The second half lets SQLite use the indexes, which leave empty values out.
            where.append(f"{column} = :{column} AND {column} <> ''")
            values[column] = value
    for column in ("sender", "recipient"):
        value = getattr(wanted, column)
        if value == "<>":
            where.append(f"{column} = ''")
        elif value.startswith("@"):
            where.append(f"lower(substr({column}, -length(:{column}))) = :{column}")
            values[column] = value.lower()
        elif value:
            where.append(f"{column} = :{column} COLLATE NOCASE")
            values[column] = value
    if wanted.client:
        where.append(_client_condition(connection, wanted.client, values))
    if wanted.action in ("pass", "hold", "refuse"):
        where.append("verdict = :action")
        values["action"] = wanted.action
    elif wanted.action:
        where.append(
            "(action = :action COLLATE NOCASE OR substr(action, 1, length(:action) + 1) = :action || ' ' COLLATE NOCASE)"
        )
        values["action"] = wanted.action
    if wanted.check:
        where.append("(by = :check OR instr(' | ' || would, ' | ' || :check || ': '))")
        values["check"] = wanted.check
    return " AND ".join(where), values


def _client_condition(connection: sqlite3.Connection, client: str, values: dict[str, str | int]) -> str:
    network = client_network(client)
    values["client"] = client
    if network is None:
        if client.startswith("."):
            return "substr(client_name, -length(:client)) = :client COLLATE NOCASE"
        return "client_name = :client COLLATE NOCASE"
    if network.version == 4 and network.prefixlen == network.max_prefixlen:
        values["client"] = str(network.network_address)
        values["mapped"] = f"::ffff:{network.network_address}"
        return "client IN (:client, :mapped)"
    within = NetworkSet([network])
    # Postfix's spelling of an IPv6 address need not be ours: compare what is meant, not the text.
    connection.create_function("in_network", 1, lambda address: address in within, deterministic=True)
    del values["client"]
    return "in_network(client)"
