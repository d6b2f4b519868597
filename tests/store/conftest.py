"""What the tests of the store share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from tests.store.faulty import Faulty


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    """The daemon's connections can fail."""
    plain = sqlite3.connect

    def connecting(*args: Any, **options: Any) -> sqlite3.Connection:
        if "check_same_thread" in options and not options["check_same_thread"]:
            options["factory"] = Faulty
        return plain(*args, **options)

    Faulty.arm(0)
    Faulty.gate.set()
    monkeypatch.setattr(sqlite3, "connect", connecting)
    yield Faulty
    Faulty.arm(0)
    Faulty.gate.set()
