"""Whoever puts away a suspension whose time is over tells of its end: what began is resolved, and what begins again is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.steering import Suspension
from policyd.store import admin
from policyd.store import upkeep as upkeep_module
from policyd.store.connect import open_for_admin
from tests.fakes import Disk, Store, ask
from tests.store.test_accounts import ALICE, chain
from tests.test_watch import networks


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Upkeep has not come by since alice's suspension was over."""
    monkeypatch.setattr(upkeep_module, "end_expired", lambda *_: None)
    with Store(tmp_path / "policyd.db", chain("more than 8 client networks per user in 10m")) as store:
        suspend(store, Suspension(ALICE, "burst", "much", "{}", 1, "7F3K2", "policyd", 1, 2))
        yield store


def suspend(store: Store, row: Suspension) -> None:
    with open_for_admin(store.path) as connection, admin.change(connection, "root") as change:
        change.put("suspension", row)


def told(store: Store) -> list[tuple[str, int, str]]:
    rows = Disk(Path(store.path)).query("SELECT subject, resolved, facts FROM event ORDER BY id")
    return [(subject, resolved, json.loads(facts)["detector"]) for subject, resolved, facts in rows]


def test_policyctl_that_suspends_another_login(store: Store) -> None:
    """It clears the table of what is over; the history has the end, too."""
    suspend(store, Suspension("bob@example.org", "", "by hand", "{}", 1, "", "root", 3, 0))
    assert told(store) == [(ALICE, 1, "burst")]
    (row,) = Disk(Path(store.path)).query("SELECT author, action, subject, detail FROM history")
    assert row == ("policyd", "release", ALICE, "its time is over")


def test_the_same_login_is_suspended_once_more(store: Store) -> None:
    """By a detector, in the moments after the first one was over: end and beginning are told, in this order."""
    store.decide(*[ask(client_address=client, instance=client) for client in networks(20)])
    assert told(store) == [(ALICE, 1, "burst"), (ALICE, 0, "d0")]
    assert Disk(Path(store.path)).query("SELECT user, detector FROM suspension") == [(ALICE, "d0")]
