"""A month of mail of 1,000 users and 50 stolen passwords through the shipped policy: see month.py for who they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import policyd
from policyd import checks
from policyd.config import Config, load
from policyd.service import build_engine
from tests.fakes import Store
from tests.simulation.logs import lines
from tests.simulation.month import KINDS, START, WEEK, Mail, Month
from tests.simulation.office import MailServer

pytestmark = pytest.mark.system

SHIPPED = Path(policyd.__file__).parent / "data" / "policyd.toml"
#: The kinds that must be stopped within the first 100 recipients.
LOUD = KINDS[:3]


def shipped(directory: Path, bulk: list[str]) -> Config:
    """The shipped configuration, with the site's newsletters and invoice runs in the tier that is made for them."""
    text = SHIPPED.read_text(encoding="utf-8")
    for shipped_, here in (
        ('members = ["news@example.org"]', f"members = {json.dumps(bulk)}"),
        ('url = "sqlite:var/policyd.db"', f'url = "sqlite://{directory}/policyd.db"'),
    ):
        assert shipped_ in text
        text = text.replace(shipped_, here)
    path = directory / "policyd.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, checks.options_of)


def learn(config: Config, mails: Sequence[Mail], log: Path) -> None:
    """``policyctl learn`` on the log of these mails."""
    log.write_text("".join(f"{line}\n" for line in lines(mails)), encoding="ascii")
    with Store(Path(config.store.path), build_engine(config)):
        pass
    command = [sys.executable, "-m", "policyd.cli", "--config", config.path, "learn", str(log), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["messages"] == len(mails), said


def test_thieves_are_stopped_and_their_owners_are_not(tmp_path: Path) -> None:
    """The first week is learned from its log, then all of the policy holds. ``POLICYD_SEED`` names another month."""
    month = Month(int(os.environ.get("POLICYD_SEED", "1")))
    mails = month.mails()
    config = shipped(tmp_path, month.bulk)
    learn(config, [mail for mail in mails if mail.at < START + WEEK], tmp_path / "mail.log")
    server = MailServer(config)
    server.knows(Path(config.store.path))
    assert len(server.accounts) > 900
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
