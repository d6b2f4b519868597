"""``policyctl db``: the database as a file: sound, how large, copied, put back, pruned, made smaller."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.common import Session, author, json_option, pass_session, table
from policyd.cli.when import iso, stamp
from policyd.errors import StoreError
from policyd.units import format_duration, format_size

if TYPE_CHECKING:
    from policyd.store.partitions import Partition


def file_sizes(path: str) -> dict[str, int]:
    """Octets of the database, of its WAL, and free where it lies."""
    found = {}
    for name, suffix in (("database", ""), ("wal", "-wal")):
        try:
            found[name] = os.stat(path + suffix).st_size
        except OSError:
            found[name] = 0
    disk = os.statvfs(os.path.dirname(os.path.abspath(path)))
    return found | {"free": disk.f_bavail * disk.f_frsize}


@click.command()
@click.option("--quick", is_flag=True, help="Do not compare the indexes with their tables.")
@json_option
@pass_session
def check(session: Session, quick: bool) -> int:
    """Is the file sound? Reads all of it; exit code 1 when it is not."""
    from policyd.store import contents

    path = session.database
    with session.reading() as connection:
        problems = contents.problems(connection, quick)
    remedy = "stop policyd, keep the file, then 'policyctl db restore BACKUP'"
    session.done(
        {"database": path, "sound": not problems, "problems": problems},
        *(escape(problem, 1000) for problem in problems),
        f"{escape(path)}: " + (f"{len(problems)} problems; {remedy}" if problems else "sound"),
    )
    return 1 if problems else 0


@click.command()
@click.option("--tables", is_flag=True, help="Octets per table too; reads the whole file.")
@json_option
@pass_session
def size(session: Session, tables: bool) -> None:
    """What takes the room."""
    from policyd.store import contents

    path = session.database
    with session.reading() as connection:
        sizes = contents.sizes(connection)
        per_table = contents.table_sizes(connection) if tables else []
    files = file_sizes(path)
    unused = sizes.free_pages * sizes.page_size
    record: dict[str, Any] = {
        "path": path,
        **files,
        "unused": unused,
        **sizes._asdict(),
        "oldest": iso(sizes.oldest_wall),
    }
    del record["oldest_wall"]
    if tables:
        record["tables"] = dict(per_table)
    if session.json:
        session.data(record)
        return
    click.echo(
        f"{escape(path)}: {format_size(files['database'])}, of which {format_size(unused)} unused; "
        f"WAL {format_size(files['wal'])}; {format_size(files['free'])} free on its file system"
    )
    rows = [
        (
            "decisions",
            sizes.decisions,
            f"in {sizes.partitions} table{'s' if sizes.partitions != 1 else ''}"
            + (f", since {stamp(sizes.oldest_wall)}" if sizes.oldest_wall else ""),
        ),
        ("counters", sizes.counters, ""),
        ("bans", sizes.bans, ""),
        ("allows", sizes.allows, ""),
        ("own limits", sizes.own_limits, ""),
        ("grants", sizes.grants, ""),
    ]
    click.echo(table(["what", "rows", "where"], rows))
    if tables:
        click.echo()
        click.echo(
            table(["table", "octets"], per_table)
            if per_table
            else "octets per table cannot be told: this SQLite was built without dbstat"
        )


@click.command()
@click.argument("target", metavar="DEST", type=click.Path(dir_okay=False))
@json_option
@pass_session
def backup(session: Session, target: str) -> None:
    """Copy the database to DEST, as of one moment, while the daemon runs. Overwrites nothing."""
    from policyd.store import copies

    octets = copies.backup(session.database, target)
    _remember(session, target)
    session.done(
        {"backup": target, "size": octets},
        f"{escape(target, 1000)}: {format_size(octets)}, checked and on disk",
    )


def _remember(session: Session, target: str) -> None:
    """Leave a line in the history, by which 'policyctl doctor' knows how old the last backup is."""
    from policyd.store import admin

    path = os.path.abspath(target)
    try:
        with session.changing() as connection, admin.change(connection, author()) as change:
            change.record("db backup", "database", escape(path, 1000))
    except StoreError as error:
        # The copy is made, whatever state the original is in.
        session.note(f"the history has no line of it: {error}")


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(dir_okay=False))
@json_option
@pass_session
def restore(session: Session, source: str) -> None:
    """Put the backup SRC in the database's place; the daemon must be stopped. The old file is kept beside it."""
    from policyd.store import copies

    path = session.database
    aside = copies.restore(source, path)
    session.done(
        {"database": path, "restored": source, "before": aside or None},
        f"{escape(path, 1000)}: restored from {escape(source, 1000)}; start policyd again",
        *([f"what was there before is {escape(aside, 1000)}"] if aside else []),
    )


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@json_option
@pass_session
def prune(session: Session, dry_run: bool) -> None:
    """Drop what [keep] no longer keeps, now. The running daemon does that by itself, so this is for when it is stopped."""
    from policyd.store import contents, locks, partitions
    from policyd.store.clock import ledger_now

    # What a broken file says of [keep] is not guessed: what is dropped is gone.
    config = session.sound_config
    path = config.store.path
    with session.reading() as connection:
        before = contents.sizes(connection)
        oldest_kept = ledger_now(connection) - config.keep.decisions
        due = [p for p in partitions.catalogue(connection) if p.closed_at and p.closed_at < oldest_kept]
    running = locks.daemon_running(path)
    record: dict[str, Any] = {
        "tables_due": len(due),
        "decisions_due": sum(p.rows for p in due),
        "daemon_running": running,
    }
    if dry_run or running is not False:
        session.done(
            {**record, "decisions_dropped": 0}, _due_text(due, config.keep.decisions), *_why_not(running)
        )
        return
    _prune_now(session)
    with session.reading() as connection:
        after = contents.sizes(connection)
    dropped = before.decisions - after.decisions
    unused = after.free_pages * after.page_size
    session.done(
        {**record, "decisions_dropped": dropped, "unused": unused},
        f"{dropped} decisions dropped, {after.decisions} kept; {format_size(unused)} of the file is unused now"
        + ("; 'policyctl db compact' gives it back" if unused > 1_000_000 else ""),
    )


def _due_text(due: list[Partition], age: int) -> str:
    rows = sum(partition.rows for partition in due)
    return f"{rows} decisions in {len(due)} tables are older than {format_duration(age)} ([keep] decisions)"


def _why_not(running: bool | None) -> list[str]:
    if running is None:
        return ["whether policyd runs is unknown, so nothing was changed; run policyctl as root"]
    return (
        ["policyd runs and drops them by itself when it is idle; nothing was changed here"] if running else []
    )


def _prune_now(session: Session) -> None:
    """What the daemon does between batches, all at once."""
    from policyd.settle import settle
    from policyd.store.clock import LedgerClock, stored_base
    from policyd.store.connect import as_owner, open_for_daemon
    from policyd.store.ledger import Ledger
    from policyd.store.locks import DaemonLock
    from policyd.store.upkeep import Keep, Upkeep

    config = session.sound_config
    path = config.store.path
    keep = Keep(config.keep.decisions, config.keep.max_size, config.keep.min_free, config.keep.memory)
    with as_owner(path):
        lock = DaemonLock(path)
        try:
            connection = open_for_daemon(path, config.store.durability)
            try:
                ledger = Ledger(
                    connection, LedgerClock(stored_base(connection)), settle, lambda: 0, lambda *_: None
                )
                upkeep = Upkeep(ledger, path, keep)
                while upkeep.step(idle=True, keep=keep):
                    pass
                upkeep.checkpoints.copy(connection, wait=True)
            finally:
                connection.close()
        finally:
            lock.release()


@click.command()
@json_option
@pass_session
def compact(session: Session) -> None:
    """Give the file's unused room back to the file system; the daemon must be stopped."""
    from policyd.store import copies

    path = session.database
    before, after = copies.compact(path)
    session.done(
        {"database": path, "before": before, "after": after},
        f"{escape(path, 1000)}: {format_size(before)} before, {format_size(after)} now",
    )
