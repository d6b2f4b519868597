"""What an import in steps has written so far, in a file beside the database: so that it is all or nothing, kill -9 or not.

Each step's lines are on disk before the step is. Whoever comes next and finds a journal that nobody holds takes back what
stands in it; the kernel lets go of a journal when the process that wrote it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import IO, Any

from policyd.answer import escape
from policyd.cli.common import Session, Terms, author
from policyd.errors import StoreBusy, StoreError
from policyd.store import account_rows, admin
from policyd.store.account_rows import Taken
from policyd.store.connect import as_owner

#: What the history calls it.
ACTION = "user import"
TAKEN_BACK = "interrupted, and taken back"


class Journal:
    """The journal of one import; held until it is closed."""

    def __init__(self, path: str, stream: IO[str]) -> None:
        self.path = path
        self._stream = stream

    def begin(self, connection: sqlite3.Connection, file: str, summary: str) -> None:
        """Say what the import will have written into the history when it is done."""
        (since,) = connection.execute("SELECT coalesce(max(id), 0) FROM history").fetchone()
        self._stream.truncate(0)
        self._write([json.dumps({"file": file, "summary": summary, "since": since})])

    def add(self, taken: Iterable[Taken]) -> None:
        """Put down what the next step writes; on disk when this returns."""
        self._write([json.dumps(each) for each in taken])

    def _write(self, lines: list[str]) -> None:
        try:
            self._stream.writelines(line + "\n" for line in lines)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None

    def read(self) -> tuple[dict[str, str | int], Iterator[Taken]]:
        """What :meth:`begin` said, empty when it did not come so far, and what was added, without a line that was cut off."""
        self._stream.seek(0)
        first = self._stream.readline()
        header = self._parsed(first) if first.endswith("\n") else {}
        return header, (Taken(*self._parsed(line)) for line in self._stream if line.endswith("\n"))

    def _parsed(self, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError:
            raise StoreError(
                f"{self.path} is damaged; import the file again, which writes the rest, and remove this one"
            ) from None

    def end(self) -> None:
        """The import is done, or taken back."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def path_of(database: str) -> str:
    """Where the journal of an import into ``database`` stands."""
    return f"{database}.import"


@contextlib.contextmanager
def held(database: str) -> Iterator[Journal]:
    """The journal, of an import that is under way or was cut short.

    :raises StoreBusy: another process has it in hand.
    :raises StoreError: it cannot be made.
    """
    path = path_of(database)
    with as_owner(database):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; an import keeps there what it has written") from None
    with open(fd, "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreBusy("another 'policyctl user import' is under way; wait until it has ended") from None
        with as_owner(database):
            yield Journal(path, stream)


def take_back_unfinished(session: Session) -> None:
    """If an import was cut short, by kill -9 or a power failure, take back what it had written.

    Looked for before whatever shows or changes accounts; nothing to do is the rule, and costs one look for a file.
    """
    database = session.database
    if not os.path.exists(path_of(database)):
        return
    try:
        with held(database) as journal:
            header, _ = journal.read()
            if header and not _ended(session, header):
                session.note(
                    f"the import of {escape(str(header['file']))} was cut short; what it had written is taken back"
                )
                take_back(session, journal, Terms(author(), "", 0, 0, False), str(header["file"]))
            journal.end()
    except StoreBusy:
        # It is being written at this moment.
        return
    except StoreError as error:
        session.note(f"an import was cut short, and what it had written cannot be taken back now: {error}")


def take_back(session: Session, journal: Journal, terms: Terms, name: str) -> None:
    """Undo all that stands in the journal, but for what others have changed since.

    :raises StoreError: it is not all undone; the journal stays.
    """
    from policyd.cli.steps import in_steps

    _, taken = journal.read()
    in_steps(session, terms, taken, account_rows.take_back)
    in_steps(session, terms, iter([name]), _record)


def _record(change: admin.Change, names: Iterable[str]) -> None:
    for name in names:
        change.record(ACTION, name, TAKEN_BACK)


def _ended(session: Session, header: dict[str, str | int]) -> bool:
    """Whether the import came to its end: its last step writes the history, too."""
    with session.reading() as connection:
        row = connection.execute(
            "SELECT 1 FROM history WHERE id > :since AND action = :action AND subject = :file AND detail = :summary",
            {**header, "action": ACTION},
        ).fetchone()
    return row is not None
