"""Detectors in the running daemon: not one message beyond the line, and nobody but who logs in can cross it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.system.asking import ALICE, RCPT, ask_all, new_instance, policy, request
from tests.system.daemon import Policyd

NETWORKS = """
[[detect]]
name = "hijacked"
when = "more than 8 client networks per user in 10m"
then = "suspend"
"""
VICTIM = (
    NETWORKS
    + """
[[detect]]
name = "refused"
when = "more than 3 refused requests per user in 1h"
then = "suspend"

[[detect]]
name = "breaches"
when = "more than 3 quota breaches per user in 1h"
then = "suspend"

[[detect]]
name = "recipients"
when = "more than 20 recipients per user in 1h"
then = "suspend"
"""
)


def network(number: int) -> str:
    return f"198.{18 + (number >> 16 & 1)}.{number >> 8 & 255}.{number & 255}"


def test_of_200_sessions_at_once_not_one_passes_beyond_the_line(tmp_path: Path) -> None:
    """Each from a network of its own: eight pass, the ninth suspends, all others are refused; once, and after a restart too."""
    address = f"unix:{tmp_path}/sock"
    text = policy(address, limits=["100000 messages per 1d"], checks=NETWORKS)
    with Policyd(tmp_path, text) as policyd:
        requests = [request(client_address=f"203.0.{number}.9") for number in range(200)]
        answers = ask_all(address, requests, 200)
        assert answers.count("DUNNO") == 8
        assert sum(answer.startswith("550 5.7.1 Sending suspended; ") for answer in answers) == 192
        ((user, evidence),) = policyd.query("SELECT user, evidence FROM suspension")
        assert user == ALICE
        assert len(json.loads(evidence)["decisions"]) == 9
        assert len(policyd.query("SELECT id FROM event WHERE kind = 'suspend'")) == 1
        assert policyd.used(ALICE, "messages") == 8
        for stage in ("MAIL", RCPT, "DATA"):
            (answer,) = ask_all(address, [request(stage)], 1)
            assert answer.startswith("550 5.7.1 Sending suspended; ")
        assert ask_all(address, [request(user="bob@example.org")], 1) == ["DUNNO"]
    with Policyd(tmp_path, text):
        assert ask_all(address, [request()], 1)[0].startswith("550 5.7.1 Sending suspended; ")


def test_10_000_attempts_from_outside_neither_suspend_nor_use_up_a_victims_quota(tmp_path: Path) -> None:
    """A forged sender, a name that was never authenticated, HELO, a certificate's subject that nobody verified."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["5 messages per 1d"], checks=VICTIM)) as policyd:
        attempts = []
        for number in range(2_500):
            client = network(number)
            forged = {"sender": ALICE, "client_address": client, "recipient": f"r{number}@example.net"}
            attempts += [
                request(RCPT, "", **forged),
                request(user="", **forged),
                request(user="", sasl_username=ALICE, **forged),
                request(
                    user="",
                    helo_name=ALICE,
                    client_name="alice.example.org",
                    instance=new_instance(),
                    **forged,
                ),
            ]
        answers = ask_all(address, attempts, 50)
        assert len(answers) == 10_000
        assert policyd.query("SELECT * FROM suspension") == []
        assert policyd.query("SELECT * FROM account") == []
        assert policyd.query("SELECT * FROM counter WHERE value = ?", ALICE) == []
        assert ask_all(address, [request() for _ in range(5)], 1) == ["DUNNO"] * 5
