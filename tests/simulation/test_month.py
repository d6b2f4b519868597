"""A month of mail of 1,000 users and 50 stolen passwords through the shipped policy: see month.py for who they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import policyd
from policyd import checks
from policyd.config import Config, load
from tests.simulation.month import KINDS, START, WEEK, Month
from tests.simulation.office import MailServer

pytestmark = pytest.mark.system

SHIPPED = Path(policyd.__file__).parent / "data" / "policyd.toml"
#: The kinds that must be stopped within the first 100 recipients.
LOUD = KINDS[:3]


def shipped(directory: Path, bulk: list[str]) -> Config:
    """The shipped configuration, with the site's newsletters and invoice runs in the tier that is made for them."""
    text = SHIPPED.read_text(encoding="utf-8")
    members = 'members = ["news@example.org"]'
    assert members in text
    path = directory / "policyd.toml"
    path.write_text(text.replace(members, f"members = {json.dumps(bulk)}"), encoding="utf-8")
    return load(path, checks.options_of)


def test_thieves_are_stopped_and_their_owners_are_not(tmp_path: Path) -> None:
    """The first week is learned, then all of the policy holds. ``POLICYD_SEED`` names another month."""
    month = Month(int(os.environ.get("POLICYD_SEED", "1")))
    mails = month.mails()
    server = MailServer(shipped(tmp_path, month.bulk))
    server.learns([mail for mail in mails if mail.at < START + WEEK])
    server.runs([mail for mail in mails if mail.at >= START + WEEK])

    outcomes = server.outcomes
    caught = {login: outcomes[login] for login in month.thefts if outcomes[login].by_thief}
    for login, kind in month.thefts.items():
        if kind in LOUD:
            assert login in caught, (login, kind, outcomes[login])
            assert outcomes[login].stolen <= 100, (login, kind, outcomes[login])
    assert len(caught) >= 45, {login: kind for login, kind in month.thefts.items() if login not in caught}
    wrongly = {login: each.why for login, each in outcomes.items() if each.suspended_at and not each.by_thief}
    assert len(wrongly) <= 1, wrongly
    refused = {
        login: each.refused for login, each in outcomes.items() if each.refused and login not in month.thefts
    }
    assert len(refused) <= 5, refused
    for kind in KINDS:
        most = max(outcomes[login].stolen for login, each in month.thefts.items() if each == kind)
        print(f"{kind}: at most {most} recipients got through")
    print(f"{len(mails):,} mails; {len(caught)} of {len(month.thefts)} thefts suspended")
    print(f"suspended wrongly: {len(wrongly)}; had a message refused: {len(refused)}")


def test_a_month_is_the_same_for_the_same_seed() -> None:
    """Or a failure could not be looked into."""
    first, second = (Month(7) for _ in range(2))
    assert first.thefts == second.thefts
    assert list(first._ordinary(first.users[3], 4)) == list(second._ordinary(second.users[3], 4))
