"""``policyctl user import`` and ``user export``: all accounts as a file."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.accounts import confirmed
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    json_option,
    login,
    pass_session,
    steering_options,
)
from policyd.cli.user_file import CSV, FORMATS, JSON_LINES, Reader, Wish, lines_of
from policyd.errors import UserError

if TYPE_CHECKING:
    from types import FrameType

    from policyd.store.account_rows import Brief

#: Differences that are shown before it is asked.
SHOWN = 10
#: Problems that are named; more of them say nothing new.
MOST_PROBLEMS = 20
#: Changes of one import up to which each stands in the history by itself, and all are one transaction.
IN_HISTORY = 10_000


@click.command("export")
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), default=CSV, show_default=True, help="Which."
)
@json_option
@pass_session
def export_users(session: Session, format_: str) -> None:
    """Print all accounts with tier, times, strikes and note as CSV, or as JSON lines (--format jsonl, --json).

    What the detectors have seen is not in it, nor own limits, grants and suspensions, which 'policyctl dump' has.
    """
    from policyd.cli.import_journal import take_back_unfinished
    from policyd.store import account_rows

    take_back_unfinished(session)
    with session.reading() as connection:
        accounts = account_rows.every(connection)
        lines = lines_of(accounts, JSON_LINES if session.json else format_, Times.of(connection))
        while some := list(itertools.islice(lines, 1_000)):
            click.echo("\n".join(some))


@click.command("import")
@click.argument("file")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="By default what the file's name or first line says.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@steering_options(lasts=False)
@json_option
@pass_session
def import_users(session: Session, file: str, format_: str | None, yes: bool, terms: Terms) -> None:
    """Take accounts from FILE, or from stdin for '-': CSV with a line of names first, or JSON lines.

    \b
    user,tier,note
    alice@example.org,verified,"customer 4711"
    bob@example.org,,

    Shows what it would change and asks. All or nothing: with a wrong line nothing is changed. A column that is not there
    leaves things as they are; an empty tier puts an account back to where the configuration and promotion say. Of an account that
    policyd knows, only tier and note are taken: the rest is what it has seen itself.
    """
    from policyd.cli.import_journal import take_back_unfinished

    name = "stdin" if file == "-" else file
    if file == "-" and not (yes or terms.dry_run):
        raise click.UsageError(
            "stdin is the file, so nobody can be asked; add --yes or --dry-run", click.get_current_context()
        )
    take_back_unfinished(session)
    with _opened(file) as source, tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        plan = _plan(session, source, name, format_ or _format_of(source, file), spool)
        if not session.json or not (yes or terms.dry_run):
            for line in plan.lines():
                click.echo(line, err=session.json)
        if plan.total and not terms.dry_run:
            confirmed(f"Change {plan.total} account{'s' if plan.total > 1 else ''}?", yes)
            _apply(session, plan, spool, terms, name)
    record = {"dry_run": terms.dry_run, **plan.record()}
    done = (
        f"{plan.total} account{'s are' if plan.total != 1 else ' is'} changed"
        if plan.total
        else "nothing to do"
    )
    session.done(record, "dry run, nothing is changed" if terms.dry_run else done)


class Plan:
    """What an import would do."""

    def __init__(self) -> None:
        self.new = 0
        self.changed = 0
        self.unchanged = 0
        #: The first differences, for people.
        self.first: list[str] = []

    @property
    def total(self) -> int:
        """Accounts that change."""
        return self.new + self.changed

    @property
    def summary(self) -> str:
        """For the history."""
        return f"{self.new} new, {self.changed} changed"

    def lines(self) -> list[str]:
        """For people."""
        rest = self.total - len(self.first)
        return [
            f"{self.new} new, {self.changed} change, {self.unchanged} stay as they are",
            *(f"  {text}" for text in self.first),
            *([f"  and {rest} more"] if rest else []),
        ]

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "new": self.new,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "first": self.first,
        }

    def take(self, wish: Wish, known: Brief | None, now: int) -> list[Any] | None:
        """What to write for one line: ``[user, is new, columns]``; ``None`` when it is so already."""
        wanted = wish.columns
        text: list[str] = []
        columns: dict[str, Any] = {}
        before = (known.tier, known.tier_by) if known is not None else ("", "")
        if "tier" in wanted and (wanted["tier"], wanted["tier_by"]) != before:
            columns |= {
                "tier": wanted["tier"],
                "tier_by": wanted["tier_by"],
                "tier_since": wanted.get("tier_since") or now,
                "messages": 0,
            }
            text.append(f"tier {_tier(*before)} -> {_tier(wanted['tier'], wanted['tier_by'])}")
        note = known.note if known is not None else ""
        if wanted.get("note", note) != note:
            columns["note"] = wanted["note"]
            text.append(f"note {escape(note)!r} -> {escape(wanted['note'])!r}")
        if known is None:
            columns = {"tier_since": now} | columns | wanted
            columns["tier_since"] = columns["tier_since"] or now
            self.new += 1
        elif columns:
            self.changed += 1
        else:
            self.unchanged += 1
            return None
        sign = "+" if known is None else "~"
        if len(self.first) < SHOWN:
            self.first.append(f"{sign} {escape(wish.user)}{': ' if text else ''}{', '.join(text)}")
        return [wish.user, known is None, columns, ", ".join(text)]


def _tier(name: str, by: str) -> str:
    return f"{escape(name)} ({escape(by)})" if name else "auto"


def _plan(session: Session, source: IO[bytes], name: str, format_: str, spool: IO[str]) -> Plan:
    """Read the file, and put what has to be written into ``spool``, one JSON array a line.

    :raises UserError: something in the file is wrong.
    """
    from policyd.accounts import digest
    from policyd.store import account_rows

    plan, wrong = Plan(), 0
    problems: list[str] = []

    def told(problem: str) -> None:
        nonlocal wrong
        wrong += 1
        if len(problems) < MOST_PROBLEMS:
            problems.append(f"{name}: {problem}")

    seen: set[int] = set()
    tiers = session.sound_config.tiers
    with session.reading() as connection, _progress("reading", _size(source)) as advance:
        times = Times.of(connection)
        reader = Reader(source, format_, times, tiers, functools.partial(login, session), told)
        try:
            for wish in reader:
                number = digest(wish.user)
                if number in seen:
                    told(f"line {wish.line}: names {wish.user!r} again")
                    continue
                seen.add(number)
                entry = plan.take(wish, account_rows.brief(connection, wish.user), times.now)
                if entry is not None:
                    spool.write(json.dumps(entry) + "\n")
                if not wish.line % 1_000:
                    advance(_position(source))
        except UserError as error:
            told(str(error))
    if problems:
        more = [f"{name}: and {wrong - len(problems)} more problems"] if wrong > len(problems) else []
        raise UserError("\n".join([*problems, *more, f"{name}: nothing was changed"]))
    return plan


def _apply(session: Session, plan: Plan, spool: IO[str], terms: Terms, name: str) -> None:
    """Write what was planned, all or nothing.

    :raises StoreError: the database is in trouble, and nothing is changed.
    """
    from policyd.store import account_rows, admin

    spool.seek(0)
    if plan.total > IN_HISTORY:
        _apply_in_steps(session, plan, spool, terms, name)
        return
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason) as change,
    ):
        entries: list[tuple[str, bool, dict[str, Any]]] = []
        for line in spool:
            user, new, columns, text = json.loads(line)
            entries.append((user, new, columns))
            change.record("user import", user, text or "new")
        account_rows.take(change, entries)
        change.record("user import", printable_name(name), plan.summary)


def _apply_in_steps(session: Session, plan: Plan, spool: IO[str], terms: Terms, name: str) -> None:
    """So many that the daemon could not wait for all at once; what is written is taken back if it cannot all be."""
    from policyd.cli import import_journal
    from policyd.cli.steps import in_steps
    from policyd.errors import StoreError
    from policyd.store import account_rows, admin

    file, done = printable_name(name), 0
    with import_journal.held(session.database) as journal, _progress("writing", plan.total) as advance:
        with session.reading() as connection:
            journal.begin(connection, file, plan.summary)

        def write(change: admin.Change, piece: Sequence[tuple[str, bool, dict[str, Any], str]]) -> None:
            nonlocal done
            connection = change.connection
            journal.add(
                account_rows.Taken(user, new, columns, account_rows.as_it_is(connection, user))
                for user, new, columns, _ in piece
            )
            account_rows.take(change, [entry[:3] for entry in piece])
            done += len(piece)
            advance(done)
            if done == plan.total:
                change.record(import_journal.ACTION, file, plan.summary)

        try:
            with _signals(signal.default_int_handler):
                in_steps(session, terms, map(json.loads, spool), write)
        except BaseException as error:
            try:
                with _signals(signal.SIG_IGN):
                    session.note("it is interrupted; what was written is taken back")
                    import_journal.take_back(session, journal, terms, file)
            except StoreError as trouble:
                raise type(trouble)(
                    f"{str(error) or 'interrupted'}; what was written by then cannot be taken back now: {trouble}. "
                    "The next 'policyctl user' does it"
                ) from None
            journal.end()
            if isinstance(error, StoreError):
                raise type(error)(f"{error}; nothing was changed") from None
            raise
        journal.end()


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """What asks the process to end comes to ``handler``: the terminal that is closed, too."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, former in zip(numbers, before, strict=True):
            signal.signal(number, former)


def printable_name(name: str) -> str:
    """A file's name as it may be stored."""
    return escape(os.path.basename(name))


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """The file, whose position can be set; what comes from a pipe is kept on disk for that."""
    with contextlib.ExitStack() as stack:
        source: IO[bytes] = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
        try:
            source.seek(0)
        except (OSError, io.UnsupportedOperation):
            kept = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(source, kept)
            kept.seek(0)
            source = kept
        yield source


def _format_of(source: IO[bytes], file: str) -> str:
    """What the name says, else what the file begins with."""
    suffix = os.path.splitext(file)[1].lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return JSON_LINES
    if suffix == ".csv":
        return CSV
    begin = source.read(4_096)
    source.seek(0)
    return JSON_LINES if begin.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else CSV


def _size(source: IO[bytes]) -> int:
    here = source.tell()
    end = source.seek(0, os.SEEK_END)
    source.seek(here)
    return end


def _position(source: IO[bytes]) -> int:
    return source.tell()


@contextlib.contextmanager
def _progress(what: str, length: int) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how far something is; called with what is done of ``length``."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=max(1, length), label=what, file=sys.stderr) as bar:
        yield lambda done: bar.update(done - bar.pos)
