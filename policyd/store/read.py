"""What policyctl asks the database: decisions, counters, known accounts, sizes. Nothing here writes.

Decisions are read one partition at a time, newest first, so that a LIMIT ends the search early. Values are always bound; the name
of a partition's table is the only part of a statement that is filled in.
"""

from __future__ import annotations

import contextlib
import difflib
import heapq
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from policyd.answer import escape
from policyd.errors import StoreDamaged
from policyd.match import NetworkSet
from policyd.opinion import CounterKey
from policyd.request import ASKED_BY_HAND
from policyd.steering import client_network
from policyd.store import partitions
from policyd.store.partitions import Partition
from policyd.window import Counter

#: Accounts that are compared when a name is not known.
COMPARED = 5_000
#: How alike local parts, and domains, must be for one to be proposed for the other (difflib's ratio, 0 to 1).
LIKENESS = 0.75
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
            found += [Logged(*row) for row in connection.execute(_for(partition, statement), values | bounds)]
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
            for row in connection.execute(_for(partition, statement), values | bounds):
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
                _for(partition, statement), values
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
            yield from map(Shadowed._make, connection.execute(_for(partition, statement), values))


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
            found += connection.execute(_for(partition, statement), values).fetchall()
    return found


def by_ids(connection: sqlite3.Connection, ids: Sequence[int]) -> list[Logged]:
    """Those of the decisions with these ids that are kept, oldest first."""
    statement = _filled(
        "SELECT {columns} FROM {table} WHERE id IN (SELECT value FROM json_each(:ids))", columns=_COLUMNS
    )
    found: list[Logged] = []
    with snapshot(connection):
        for partition in _partitions(connection, Wanted(after=min(ids, default=_LAST) - 1)):
            rows = connection.execute(_for(partition, statement), {"ids": json.dumps(list(ids))})
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
        row = connection.execute(_for(partition, statement), (identifier,)).fetchone()
        if row is not None:
            return int(row[0])
    return 0


def newest_id(connection: sqlite3.Connection) -> int:
    """The id of the newest decision; 0 when there is none."""
    for partition in partitions.catalogue(connection):
        row = connection.execute(_for(partition, "SELECT max(id) FROM {table}")).fetchone()
        if row[0] is not None:
            return int(row[0])
    return 0


def _filled(template: str, **pieces: str) -> str:
    """``template`` with each ``{name}`` replaced by a fixed piece of SQL from this module."""
    for name, piece in pieces.items():
        template = template.replace("{" + name + "}", piece)
    return template


def _for(partition: Partition, template: str) -> str:
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
    low, high = connection.execute(_for(partition, "SELECT min(id), max(id) + 1 FROM {table}")).fetchone()
    if low is None:
        return 0
    statement = _for(partition, "SELECT id, at FROM {table} WHERE id >= ? ORDER BY id LIMIT 1")
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


# --- accounts ---------------------------------------------------------------------------------------------------------

_KNOWN = """
    SELECT EXISTS (SELECT 1 FROM counter WHERE scope = 'user' AND value = :user)
        OR EXISTS (SELECT 1 FROM user_limit WHERE user = :user)
        OR EXISTS (SELECT 1 FROM user_grant WHERE user = :user)
        OR EXISTS (SELECT 1 FROM ban WHERE kind = 'user' AND value = :user)
        OR EXISTS (SELECT 1 FROM sender_right WHERE user = :user)
        OR EXISTS (SELECT 1 FROM account WHERE user = :user)
        OR EXISTS (SELECT 1 FROM suspension WHERE user = :user)
"""


def is_known(connection: sqlite3.Connection, user: str) -> bool:
    """Whether the account was ever counted, steered, or seen in the decisions that are kept."""
    if connection.execute(_KNOWN, {"user": user}).fetchone()[0]:
        return True
    return bool(decisions(connection, Wanted(user=user), 1))


def similar(connection: sqlite3.Connection, user: str) -> list[str]:
    """At most three known accounts whose names resemble ``user``, the nearest first."""
    candidates: list[str] = []
    # With many accounts only those are compared that begin alike; nobody mistypes everything.
    for length in (0, 1, 2, 3, 4, 6, 8, 12):
        candidates = _accounts(connection, user[:length], COMPARED)
        if len(candidates) < COMPARED:
            break
    return alike(user, candidates)


def alike(user: str, candidates: Iterable[str]) -> list[str]:
    """At most three of ``candidates`` that ``user`` may be a mistyped form of, the nearest first.

    Logins of one domain resemble each other by that alone, so local part and domain are each compared by themselves.
    """
    parts = user.partition("@")[::2]
    matchers = [difflib.SequenceMatcher(b=part) for part in parts]
    found = []
    for name in candidates:
        if name == user:
            continue
        likeness = 1.0
        theirs = name.partition("@")[::2]
        for matcher, mine, their in zip(matchers, parts, theirs, strict=True):
            if their != mine:
                matcher.set_seq1(their)
                # The two estimates are cheap, and never below the likeness itself.
                for estimate in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio):
                    likeness = min(likeness, estimate())
                    if likeness < LIKENESS:
                        break
        # Without a domain, or with another one, the same local part is enough.
        if likeness >= LIKENESS or (parts[0] and parts[0] == theirs[0]):
            found.append((-likeness, name))
    return [name for _, name in heapq.nsmallest(3, found)]


def _accounts(connection: sqlite3.Connection, prefix: str, limit: int) -> list[str]:
    """Accounts that were counted or steered, whose names begin with ``prefix``."""
    rows = connection.execute(
        "SELECT value FROM counter WHERE scope = 'user' AND value >= :low AND value < :high "
        "UNION SELECT user FROM user_limit WHERE user >= :low AND user < :high "
        "UNION SELECT user FROM user_grant WHERE user >= :low AND user < :high "
        "UNION SELECT user FROM account WHERE user >= :low AND user < :high LIMIT :limit",
        {"low": prefix, "high": prefix + "\U0010ffff", "limit": limit},
    )
    return [row[0] for row in rows]


def counter(connection: sqlite3.Connection, key: CounterKey) -> Counter:
    """The counter of ``key``; an empty one when nothing was counted.

    :raises StoreDamaged: the row cannot be read.
    """
    row = connection.execute(
        "SELECT cells FROM counter WHERE scope = ? AND value = ? AND unit = ?", tuple(key)
    ).fetchone()
    try:
        return Counter.unpack(row[0]) if row else Counter()
    except ValueError as error:
        raise StoreDamaged(
            f"the counter of {key.scope} {escape(key.value)} ({key.unit}) cannot be read, and begins anew with the next mail: "
            f"{error}; 'policyctl db check' looks for more"
        ) from None


def counters(connection: sqlite3.Connection, scope: str, unit: str) -> Iterator[tuple[str, Counter | None]]:
    """Each value of ``scope`` for which ``unit`` was counted, with its counter; ``None`` when it cannot be read."""
    rows = connection.execute("SELECT value, cells FROM counter WHERE scope = ? AND unit = ?", (scope, unit))
    for value, cells in rows:
        try:
            yield value, Counter.unpack(cells)
        except ValueError:
            yield value, None


def all_counters(connection: sqlite3.Connection) -> Iterator[tuple[CounterKey, bytes]]:
    """Every counter as it is stored."""
    for scope, value, unit, cells in connection.execute("SELECT scope, value, unit, cells FROM counter"):
        yield CounterKey(scope, value, unit), cells


# --- the file ---------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """The database by what it holds; octets and rows."""

    page_size: int
    pages: int
    free_pages: int
    counters: int
    bans: int
    allows: int
    own_limits: int
    grants: int
    decisions: int
    partitions: int
    #: Wall-clock time (ms) of the oldest decision; 0 when there is none.
    oldest_wall: int


def sizes(connection: sqlite3.Connection) -> Sizes:
    """How much the database holds. Counts every counter, so it takes a moment with millions."""
    with snapshot(connection):
        page_size, pages, free = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        counted, bans, allows, own_limits, grants = connection.execute(
            "SELECT (SELECT count(*) FROM counter), (SELECT count(*) FROM ban), (SELECT count(*) FROM allow), "
            "(SELECT count(*) FROM user_limit), (SELECT count(*) FROM user_grant)"
        ).fetchone()
        listed = partitions.catalogue(connection)
        rows, oldest = 0, 0
        for partition in listed:
            if partition.closed_at:
                rows += partition.rows
            else:
                rows += int(connection.execute(_for(partition, "SELECT count(*) FROM {table}")).fetchone()[0])
        for partition in reversed(listed):
            row = connection.execute(
                _for(partition, "SELECT wall_at FROM {table} ORDER BY id LIMIT 1")
            ).fetchone()
            if row:
                oldest = int(row[0])
                break
    return Sizes(page_size, pages, free, counted, bans, allows, own_limits, grants, rows, len(listed), oldest)


def table_sizes(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Octets per table with its indexes, largest first; reads the whole file. Empty where SQLite was built without dbstat."""
    try:
        rows = connection.execute(
            "SELECT coalesce(m.tbl_name, s.name), sum(s.pgsize) FROM dbstat AS s "
            "LEFT JOIN sqlite_schema AS m ON m.name = s.name WHERE s.aggregate = TRUE GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
    except sqlite3.OperationalError as error:
        if "dbstat" in str(error):
            return []
        raise
    return [(str(name), int(octets)) for name, octets in rows]


def problems(connection: sqlite3.Connection, quick: bool = False) -> list[str]:
    """What is wrong with the file: pages, indexes, counters that cannot be read, tables that the catalogue misses."""
    pragma = "PRAGMA quick_check(100)" if quick else "PRAGMA integrity_check(100)"
    try:
        found = [str(row[0]) for row in connection.execute(pragma) if row[0] != "ok"]
        if found:
            return found
        for key, cells in all_counters(connection):
            try:
                Counter.unpack(cells)
            except ValueError as error:
                found.append(f"counter {key.scope} {key.value!r} {key.unit}: {error}")
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        return [str(error)]
    listed = {partition.table for partition in partitions.catalogue(connection)}
    found += [f"table {name} is missing" for name in sorted(listed - tables)]
    found += [
        f"table {name} is not in decision_partition"
        for name in sorted(tables - listed)
        if name.startswith("decision_") and name.removeprefix("decision_").isdigit()
    ]
    return found
