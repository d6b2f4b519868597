"""Counts are exact: what was accepted is counted once, what was refused is not, whoever refused it."""

from __future__ import annotations

from pathlib import Path

from tests.system.asking import ALICE, ask_all, new_instance, policy, request
from tests.system.daemon import Policyd

EVERY_THIRD = "[[check]]\nuse = 'tests.system.every_third'\nname = 'third'\n"
SERVER = (
    "[[check]]\nuse = 'quota'\nname = 'server'\nfor = 'submission'\nper = 'server'\n"
    "limits = ['100000 recipients per 1h', '100000 messages per 1d']\n"
)


def test_counts_equal_what_was_accepted(tmp_path: Path) -> None:
    """2,000 messages of one account over 50 connections, two quota checks and a later check that refuses every third:
    both count exactly what was accepted, and asking everything again changes nothing."""
    address = f"unix:{tmp_path}/sock"
    limits = ["100000 recipients per 1h", "100000 messages per 1d"]
    with Policyd(tmp_path, policy(address, limits=limits, checks=SERVER + EVERY_THIRD)) as policyd:
        requests = [request(size=size, recipient_count=2, recipient="") for size in range(1, 2001)]
        answers = ask_all(address, requests, 50)
        for size, answer in enumerate(answers, 1):
            assert answer.startswith("550 5.7.1 Every third" if size % 3 == 0 else "DUNNO"), (size, answer)
        accepted = answers.count("DUNNO")
        assert accepted == 2000 - 2000 // 3

        def exact() -> None:
            assert policyd.used(ALICE, "recipients", "1h") == 2 * accepted
            assert policyd.used(ALICE, "messages") == accepted
            rows = policyd.query("SELECT scope, unit, cells FROM counter ORDER BY scope, unit")
            assert [row[:2] for row in rows] == [
                ("server", "messages/external"),
                ("server", "recipients/external"),
                ("user", "messages/external"),
                ("user", "recipients/external"),
            ]
            # The same mail, the same cells: one check has not counted what the other has not.
            assert [row[2] for row in rows[:2]] == [row[2] for row in rows[2:]]

        exact()
        again = ask_all(address, requests, 50)
        assert [answer[:20] for answer in again] == [answer[:20] for answer in answers]
        exact()


def test_the_limit_lets_exactly_so_many_pass(tmp_path: Path) -> None:
    """Of 1,000 messages at once over 50 connections a limit of 100 lets exactly 100 pass; asking again changes nothing."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["100 messages per 1d"])) as policyd:
        requests = [request() for _ in range(1000)]
        answers = ask_all(address, requests, 50)
        assert answers.count("DUNNO") == 100
        assert sum(answer.startswith("450 4.7.1 ") for answer in answers) == 900
        again = ask_all(address, requests, 50)
        assert [a == "DUNNO" for a in again] == [a == "DUNNO" for a in answers]
        assert policyd.used(ALICE, "messages") == 100


def test_the_same_request_from_many_connections_counts_once(tmp_path: Path) -> None:
    """One request, asked over 20 connections at the same moment, five times each: all are told the same, one is counted."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["10 messages per 1d"])) as policyd:
        same = request(instance=new_instance())
        assert set(ask_all(address, [same] * 100, 20)) == {"DUNNO"}
        assert policyd.used(ALICE, "messages") == 1
