"""A database whose statements fail, or wait, when a test says so."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any, ClassVar


class Faulty(sqlite3.Connection):
    """A connection whose n-th statement fails, once or from then on, as SQLite would report it."""

    at: ClassVar[int] = 0
    lasting: ClassVar[bool] = False
    error: ClassVar[str] = "SQLITE_IOERR_WRITE"
    count: ClassVar[int] = 0
    #: Cleared: a transaction waits, before it begins, until it is set.
    gate: ClassVar[threading.Event] = threading.Event()
    #: Set when one waits.
    waits: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def arm(cls, at: int, lasting: bool = False, error: str = "SQLITE_IOERR_WRITE") -> None:
        cls.at, cls.lasting, cls.error, cls.count = at, lasting, error, 0

    @classmethod
    def hit(cls) -> None:
        if not cls.at:
            return
        cls.count += 1
        if cls.count == cls.at or (cls.lasting and cls.count > cls.at):
            failure = sqlite3.DatabaseError if "CORRUPT" in cls.error else sqlite3.OperationalError
            error = failure(f"simulated {cls.error}")
            error.sqlite_errorname = cls.error
            raise error

    def execute(self, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
        if args[0] == "BEGIN IMMEDIATE" and not self.gate.is_set():
            self.waits.set()
            self.gate.wait()
        self.hit()
        return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
        self.hit()
        return super().executemany(*args)

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(FaultyCursor)


class FaultyCursor(sqlite3.Cursor):
    """The same for whoever makes cursors."""

    def execute(self, *args: Any) -> sqlite3.Cursor:
        Faulty.hit()
        return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        Faulty.hit()
        return super().executemany(*args)
