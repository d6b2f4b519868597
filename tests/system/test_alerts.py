"""Alerts of a running policyd: channels in trouble, the daemon killed, the store sick, the clock stepped: none lost or twice."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.alerts.receivers import MailServer, WebServer
from tests.system.asking import Asker, policy
from tests.system.daemon import Policyd
from tests.system.test_clock import DAY, HOUR, WallClock
from tests.system.waiting import wait_for


def with_alerts(address: str, *targets: str, more: str = "") -> str:
    """A configuration that tells everything to the targets."""
    channels = "".join(f'[[alert]]\nto = "{target}"\nname = "c{n}"\n' for n, target in enumerate(targets))
    return policy(address, checks=f"{channels}\n[alerts]\ntimeout = '1s'\n{more}\n")


def happens(policyd: Policyd, kind: str, subject: str, resolved: bool = False, **facts: Any) -> None:
    """As the ledger writes it."""
    connection = sqlite3.connect(policyd.database, timeout=30)
    try:
        with connection:
            connection.execute(
                "INSERT INTO event (at, wall_at, kind, subject, resolved, facts) "
                "SELECT ledger, wall, ?, ?, ?, ? FROM ledger_state",
                (kind, subject, resolved, json.dumps(facts)),
            )
    finally:
        connection.close()


def states(policyd: Policyd) -> Counter[str]:
    """How many alerts are in which state, on disk."""
    return Counter(state for (state,) in policyd.query("SELECT state FROM alert"))


def begin(policyd: Policyd, address: str) -> None:
    """One decision, so that the database knows the time."""
    with Asker(address) as asker:
        asker.ask()
    wait_for(lambda: policyd.query("SELECT 1 FROM ledger_state"), policyd.told)


def test_a_webhook_in_every_kind_of_trouble(tmp_path: Path) -> None:
    """Slow, silent, 500, refused, gone for a while: each alert arrives exactly once, a channel that works is not held up, and
    policyctl says what waits and why."""
    address = f"unix:{tmp_path}/sock"
    slow = threading.Event()

    def behave(number: int) -> int:
        if number == 0:
            # Longer than the channel's time.
            slow.wait(10)
            return 0
        return (500, 0, 404)[number - 1] if number < 4 else 204

    web = WebServer(behave)
    with (
        MailServer() as mail,
        Policyd(
            tmp_path,
            with_alerts(address, web.url, "mailto:root", more=f'smtp = "127.0.0.1:{mail.address[1]}"'),
        ) as policyd,
    ):
        begin(policyd, address)
        for number in range(5):
            happens(policyd, "suspend", f"user{number}@example.org", ref=f"REF{number}")
        wait_for(lambda: len(mail.mails) == 5, policyd.told)
        wait_for(lambda: "alert-failed: channel c0" in policyd.told(), policyd.told)
        assert "refused" in policyd.ctl("status")
        assert len(policyd.ctl_json("alert")) == 5
        with web:
            for turn in range(4):
                wait_for(lambda turn=turn: len(web.asked) > turn, policyd.told)  # type: ignore[misc]
                if turn == 0:
                    wait_for(
                        lambda: "no answer within 1 s" in policyd.ctl("alert"), lambda: policyd.ctl("alert")
                    )
                    slow.set()
                else:
                    wait_for(
                        lambda turn=turn: policyd.query("SELECT sum(tries) FROM alert")[0][0] > turn,  # type: ignore[misc]
                        lambda: policyd.ctl("alert"),
                    )
                policyd.ctl("alert", "retry")
            wait_for(lambda: states(policyd) == {"sent": 10}, lambda: policyd.ctl("alert", "list", "--all"))
            assert sorted(web.acknowledged) == sorted(set(web.acknowledged))
            assert sorted(each["data"]["facts"]["ref"] for each in web.told) == [f"REF{n}" for n in range(5)]
        assert len({each["Message-ID"] for each in mail.mails}) == len(mail.mails) == 5
        assert policyd.ctl("alert") == "no alert waits\n"
        assert "alert-channel-well: channel c0" in policyd.told()


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 while alerts are written, sent and acknowledged, again and again: none is lost; none whose acknowledgement was
    written down is sent again; what is sent twice, because the answer came at the very moment, has the same id."""
    address = f"unix:{tmp_path}/sock"
    with WebServer() as web:
        policyd = Policyd(tmp_path, with_alerts(address, web.url))
        policyd.start()
        begin(policyd, address)
        rounds, each = 6, 6
        for turn in range(rounds):
            known = {uid for (uid,) in policyd.query("SELECT uid FROM alert WHERE state = 'sent'")}
            before = len(web.asked)
            for number in range(each):
                happens(policyd, "detect", f"user{turn}-{number}@example.org")
            # At another moment each time: as many of them as the turn says have been asked for.
            wait_for(lambda: len(web.asked) >= before + turn % each, policyd.told)  # noqa: B023
            policyd.kill()
            assert not known & set(web.asked[before:])
            policyd.start()
            assert not known & set(web.asked[before:])
        # What was a flood by then is told together.
        wait_for(lambda: policyd.query("SELECT event FROM alert_cursor")[0][0] == rounds * each, policyd.told)
        (total,) = policyd.query("SELECT sum(count) FROM alert")[0]
        assert total == rounds * each
        singly = policyd.query("SELECT count(*) FROM alert WHERE subject <> ''")[0][0]
        wait_for(lambda: states(policyd)["sent"] >= singly, lambda: policyd.ctl("alert", "list", "--all"))
        policyd.stop()
        twice = [uid for uid, times in Counter(web.acknowledged).items() if times > 1]
        assert len(twice) <= rounds
        assert {uid for (uid,) in policyd.query("SELECT uid FROM alert WHERE state = 'sent'")} <= set(
            web.asked
        )


def test_an_alert_survives_a_channel_that_is_down_and_restarts(tmp_path: Path) -> None:
    """Gone for longer than the daemon lives: it is sent when both are there, once, and later restarts send nothing."""
    address = f"unix:{tmp_path}/sock"
    web = WebServer()
    policyd = Policyd(tmp_path, with_alerts(address, web.url))
    with policyd:
        begin(policyd, address)
        happens(policyd, "suspend", "alice@example.org")
        policyd.wait_told("alert-failed")
    policyd.start()
    policyd.kill()
    with web:
        for _ in range(3):
            with policyd:
                policyd.ctl("alert", "retry")
                wait_for(lambda: states(policyd) == {"sent": 1}, policyd.told)
                # A test goes through after everything that was due before it.
                policyd.ctl("alert", "test", "c0")
                policyd.query("SELECT 1")
            assert [each["type"] for each in web.told].count("policyd.suspend.began") == 1
            states_before = policyd.query("SELECT count(*) FROM alert")[0][0]
            connection = sqlite3.connect(policyd.database)
            with connection:
                connection.execute("DELETE FROM alert WHERE kind = 'test'")
            connection.close()
            assert states_before == 2


def test_gone(tmp_path: Path) -> None:
    """410 stops the channel, status says so, and policyctl alert retry starts it again."""
    address = f"unix:{tmp_path}/sock"
    with (
        WebServer(lambda number: 410 if number == 0 else 204) as web,
        Policyd(tmp_path, with_alerts(address, web.url)) as policyd,
    ):
        begin(policyd, address)
        happens(policyd, "suspend", "alice@example.org")
        policyd.wait_told("alert-stopped")
        wait_for(lambda: "wants nothing any more" in policyd.ctl("status"), policyd.told)
        happens(policyd, "suspend", "bob@example.org")
        wait_for(lambda: states(policyd) == {"waits": 2}, policyd.told)
        assert len(web.asked) == 1
        policyd.ctl("alert", "retry", "c0")
        wait_for(lambda: states(policyd) == {"sent": 2}, policyd.told)
        assert "wants nothing" not in policyd.ctl("status")


def test_a_sick_store_is_told_at_once_and_once(tmp_path: Path) -> None:
    """The alert about the database does not need the database; when it is well again that is told, and nothing twice, not after
    a restart either."""
    address = f"unix:{tmp_path}/sock"
    with WebServer() as web:
        policyd = Policyd(tmp_path, with_alerts(address, web.url))
        with policyd:
            begin(policyd, address)
            # Another program holds the database; the daemon does not wait for it.
            connection = sqlite3.connect(policyd.database, isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
            with Asker(address) as asker:
                asker.ask()
                wait_for(lambda: web.told, policyd.told)
                assert [each["type"] for each in web.told] == ["policyd.store-sick.began"]
                connection.execute("ROLLBACK")
                connection.close()
                wait_for(lambda: len(web.told) == 2, policyd.told)
            assert web.told[1]["type"] == "policyd.store-sick.resolved"
            wait_for(lambda: states(policyd) == {"sent": 2}, policyd.told)
        with policyd:
            policyd.ctl("alert", "test")
        assert Counter(web.acknowledged).most_common(1)[0][1] == 1
        assert [each["data"]["kind"] for each in web.told] == ["store-sick", "store-sick", "test"]


def test_the_store_is_sick_already_at_the_start(tmp_path: Path) -> None:
    """A daemon that starts in memory tells that too."""
    address = f"unix:{tmp_path}/sock"
    with WebServer() as web:
        policyd = Policyd(tmp_path, with_alerts(address, web.url))
        with policyd:
            begin(policyd, address)
        connection = sqlite3.connect(policyd.database, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        with policyd:
            wait_for(lambda: web.told, policyd.told)
            connection.execute("ROLLBACK")
            connection.close()
            wait_for(lambda: len(web.told) == 2, policyd.told)
            wait_for(lambda: states(policyd) == {"sent": 2}, policyd.told)
    assert [each["data"]["resolved"] for each in web.told] == [False, True]


def test_steps_of_the_clock(tmp_path: Path) -> None:
    """A step is told; pauses and repeats go by elapsed time: nothing is sent again because of it, nothing waits a day longer."""
    address = f"unix:{tmp_path}/sock"
    clock = WallClock(tmp_path)
    with WebServer() as web:
        policyd = Policyd(tmp_path, with_alerts(address, web.url), environment=clock.environment)
        with policyd:
            begin(policyd, address)
            happens(policyd, "detect", "alice@example.org")
            wait_for(lambda: len(web.told) == 1, policyd.told)
            clock.step(-DAY)
            wait_for(lambda: len(web.told) == 2, policyd.told)
            assert web.told[1]["type"] == "policyd.clock.began"
            happens(policyd, "detect", "alice@example.org")
            happens(policyd, "detect", "bob@example.org")
            wait_for(lambda: len(web.told) == 3, policyd.told)
            clock.step(DAY + HOUR)
            happens(policyd, "detect", "alice@example.org")
            happens(policyd, "detect", "carol@example.org")
            wait_for(lambda: len(web.told) == 4, policyd.told)
        assert [each["data"]["subject"] for each in web.told] == [
            "alice@example.org",
            "wall clock",
            "bob@example.org",
            "carol@example.org",
        ]


def test_policyctl_alert_test(tmp_path: Path) -> None:
    """Each channel is tried, what came of it is said, and the exit code says whether all took it."""
    address = f"unix:{tmp_path}/sock"
    web = WebServer()
    policyd = Policyd(
        tmp_path, with_alerts(address, web.url, "exec:/bin/true", more=f'hook = "{tmp_path}/none"')
    )
    assert (
        "does not run" in policyd.try_ctl("alert", "test").stderr
        or policyd.try_ctl("alert", "test").returncode
    )
    with web, policyd:
        printed = policyd.ctl("alert", "test", code=1)
        assert "sent  c0" in printed
        assert "waits  c1: " in printed
        assert "policyd-hook.socket" in printed
        assert policyd.ctl_json("alert", "test", "c0") == {
            "tests": [{"channel": "c0", "state": "sent", "error": ""}]
        }
        assert "did you mean c1" in policyd.try_ctl("alert", "test", "c11").stderr
        (waiting,) = policyd.ctl_json("alert")
        shown = policyd.ctl("alert", "show", waiting["id" if "id" in waiting else "uid"][:6])
        assert "a test of this channel" in shown
    assert policyd.ctl("alert", "test", code=4) == ""


@pytest.mark.parametrize("after", ["reload", "restart"])
def test_channels_change(tmp_path: Path, after: str) -> None:
    """A reload takes changed channels over; what waits for one that was renamed is kept, and shown as such."""
    address = f"unix:{tmp_path}/sock"
    first, second = WebServer(), WebServer()
    policyd = Policyd(tmp_path, with_alerts(address, first.url))
    with policyd:
        begin(policyd, address)
        happens(policyd, "suspend", "alice@example.org")
        policyd.wait_told("alert-failed")
        changed = with_alerts(address, second.url).replace('"c0"', '"new"')
        if after == "reload":
            policyd.reload(changed)
        else:
            policyd.configure(changed)
            policyd.stop()
            policyd.start()
        with second:
            happens(policyd, "suspend", "bob@example.org")
            wait_for(lambda: second.told, policyd.told)
            assert "which is not configured any more" in policyd.ctl("status")
            assert "no such channel" in policyd.ctl("alert")
        policyd.configure(with_alerts(address, second.url))
        with second:
            policyd.reload()
            policyd.ctl("alert", "retry")
            wait_for(lambda: states(policyd) == {"sent": 2}, policyd.told)
        assert [each["data"]["subject"] for each in second.told] == ["bob@example.org", "alice@example.org"]


def test_a_suspension_reaches_the_admin(tmp_path: Path) -> None:
    """From the request that crosses the line to the mail: who, why, from where, how much got out, what to type."""
    address = f"unix:{tmp_path}/sock"
    with MailServer() as mail:
        detect = "[[detect]]\nname = 'hijacked'\nwhen = 'more than 3 client networks per user in 10m'\nthen = 'suspend'\n"
        config = policy(
            address,
            limits=["10 messages per 1h", "10 recipients per 1h"],
            checks=f"{detect}[[alert]]\nto = 'mailto:root'\n[alerts]\nsmtp = '127.0.0.1:{mail.address[1]}'\n",
        )
        with Policyd(tmp_path, config) as policyd, Asker(address) as asker:
            answers = [asker.ask(client_address=f"198.51.{number}.7") for number in range(5)]
            assert answers[:3] == ["DUNNO"] * 3
            found = re.search(r"ref (\w+)", answers[3])
            assert found
            wait_for(lambda: len(mail.mails) == 1, policyd.told)
        text = mail.mails[0].get_payload(decode=True).decode()  # type: ignore[union-attr]
        assert "alice@example.org is suspended until" in text
        assert "4 client networks, more than 3 in 10m" in text
        assert "198.51.3.7" in text
        assert "3 messages, 3 recipients" in text
        assert f"policyctl explain {found[1]}" in text
