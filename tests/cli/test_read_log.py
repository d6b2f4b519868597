"""log, explain and try: decisions found again, and decided without a trace."""

from __future__ import annotations

import io
import json
from datetime import datetime

import pytest

from policyd.cli.decisions import reference_of
from policyd.cli.explain import clues
from policyd.cli.when import parse_past
from policyd.units import HOUR
from tests.cli.conftest import Run
from tests.sample_database import Sample


def test_log_lists_the_newest_last_and_filters(sample: Sample, policyctl: Run) -> None:
    """The newest stands last; each option narrows."""
    sample.ask(2 * HOUR, sasl_username="bob", sender="bob@example.org")
    for _ in range(3):
        sample.ask()
    rows = policyctl("log", "--json").json
    assert [row["id"] for row in rows] == [1, 2, 3, 4]
    assert [row["id"] for row in policyctl("log", "-n", "2", "--json").json] == [3, 4]
    assert [row["id"] for row in policyctl("log", "--user", "bob", "--json").json] == [1]
    assert [row["id"] for row in policyctl("log", "--since", "1h", "--json").json] == [2, 3, 4]
    assert [row["id"] for row in policyctl("log", "--until", "1h", "--json").json] == [1]
    assert len(policyctl("log").out.splitlines()) == 4
    assert policyctl("log", "--user", "alice", "--since", "yesterday", "--until", "yesterday").out == (
        "no such decision\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "code", "says"),
    [
        ("--user", "alicf", 3, "was never seen; did you mean alice@example.org?"),
        ("--check", "quoat", 3, "did you mean quota?"),
        ("--check", "nonsense", 3, "there is allow, bans, quota, whole-server, deadline"),
        ("--stage", "rctp", 3, "did you mean RCPT?"),
        ("--action", "refused", 2, "did you mean refuse?"),
        ("--action", "4500", 2, "write pass, hold, refuse"),
    ],
)
def test_what_cannot_be_found_is_told_from_what_did_not_happen(
    sample: Sample, policyctl: Run, option: str, value: str, code: int, says: str
) -> None:
    """A mistyped filter must not look like "nothing happened", with --by and --json neither."""
    sample.ask()
    for more in ([], ["--by", "user"], ["--json"]):
        ran = policyctl("log", option, value, *more)
        assert (ran.code, ran.out) == (code, "")
        assert says in ran.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--action", "450"), ("--action", "dunno"), ("--check", "deadline"), ("--stage", "data")],
)
def test_what_may_be_and_is_not_there(sample: Sample, policyctl: Run, option: str, value: str) -> None:
    """An empty answer is an answer."""
    sample.ask(sasl_username="bob", recipient_count="9")
    ran = policyctl("log", "--user", "bob", option, value)
    assert (ran.code, ran.out, ran.err) == (0, "no such decision\n", "")


def test_log_groups(sample: Sample, policyctl: Run) -> None:
    """--by counts what is found."""
    sample.ask(recipient="", recipient_count="5")
    sample.ask()
    rows = policyctl("log", "--by", "user", "--json").json
    assert [
        (row["user"], row["decisions"], row["passed"], row["refused"], row["recipients"]) for row in rows
    ] == [("alice@example.org", 2, 1, 1, 5)]
    assert policyctl("log", "--by", "user", "--follow").code == 2


def test_follow_prints_what_comes(sample: Sample, policyctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """New decisions come out in order, each once, one object a line, until Ctrl-C."""
    sample.ask()
    turns = [2, 0, 1]

    def instead_of_waiting(_: float) -> None:
        if not turns:
            raise KeyboardInterrupt
        for _turn in range(turns.pop(0)):
            sample.ask()

    monkeypatch.setattr("policyd.cli.log.time.sleep", instead_of_waiting)
    ran = policyctl("log", "--follow", "--json", "--user", "alice")
    assert ran.code == 0
    assert [json.loads(text)["id"] for text in ran.out.splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "a\r\nb", "\u202eevil", "café", 'q"\\'])
def test_what_a_sender_wrote_reaches_no_terminal_raw(sample: Sample, policyctl: Run, hostile: str) -> None:
    """Every command prints text from outside escaped, on one line, as ASCII."""
    hostile = hostile.replace("\n", "\v")
    decision = sample.ask(
        sender=f"{hostile}@example.com",
        recipient=f"{hostile}@example.net",
        client_name=hostile,
        helo_name=hostile,
        sasl_username=hostile.replace(" ", ""),
        recipient_count="9",
        queue_id=hostile,
    )
    assert decision.settled.ref is not None
    for arguments in (
        ("log",),
        ("log", "--by", "sender"),
        ("explain", decision.settled.ref),
        ("quota", "top"),
        ("status",),
        ("try", f"sender={hostile}", f"user={hostile}".replace(" ", "")),
    ):
        for json_too in ((), ("--json",)):
            ran = policyctl(*arguments, *json_too)
            assert ran.code in (0, 4), ran.err
            assert ran.out.isascii()
            assert all(text.isprintable() for text in ran.out.splitlines())


def test_a_refusal_is_explained_by_whatever_is_pasted(sample: Sample, policyctl: Run) -> None:
    """Reference in any spelling, queue id, instance, Postfix's line, the decision log's line: all lead to the row."""
    sample.ask()
    refused = sample.ask(recipient="", recipient_count="9", queue_id="4F3A1B9999")
    ref = refused.settled.ref
    assert ref is not None
    for pasted in (
        ref,
        ref.lower(),
        f"ref {ref}",
        f"ref={ref}",
        "4F3A1B9999",
        refused.request.instance,
        f"Nov 23 10:00:00 mx postfix/smtpd[9]: 4F3A1B9999: reject: END-OF-MESSAGE from x[192.0.2.7]: 550 5.7.1 0 of 5. ref {ref}",
        "Nov 23 10:00:00 mx postfix/cleanup[7]: 4F3A1B9999: message-id=<x@y>",
        f"2026-11-23T21:13:18Z id=2 verdict=refuse ref={ref} instance={refused.request.instance} user=alice@example.org",
    ):
        ran = policyctl("explain", pasted, "--json")
        assert ran.code == 0, (pasted, ran.err)
        assert ran.json["id"] == refused.id, pasted


def test_explain_shows_opinions_numbers_and_policy(sample: Sample, policyctl: Run) -> None:
    """Each check's opinion and time, each limit's numbers, what was counted, what shadow would have said."""
    for _ in range(3):
        sample.ask()
    passed = sample.ask()
    text = policyctl("explain", passed.request.instance).out
    for needed in (
        "let pass",
        "allow",
        "bans",
        "quota",
        "whole-server: 450",
        "recipients/external",
        "counted per",
        passed.policy,
    ):
        assert needed in text
    found = policyctl("explain", passed.request.instance, "--json").json
    assert [(limit["check"], limit["used"], limit["amount"], limit["fits"]) for limit in found["limits"]] == [
        ("quota", 3, 1, True),
        ("quota", 3000, 1000, True),
        ("whole-server", 3, 1, False),
    ]
    assert {charge["unit"]: charge["amount"] for charge in found["charges"]}["recipients/external"] == 1


def test_explain_lists_the_other_requests_of_the_mail(sample: Sample, policyctl: Run) -> None:
    """From the refusal one sees which recipients were asked about before."""
    for recipient in ("a@example.net", "b@example.net"):
        sample.ask(protocol_state="RCPT", recipient=recipient, instance="1a.2b.3c.0", queue_id="")
    refused = sample.ask(recipient="", recipient_count="9", instance="1a.2b.3c.0")
    assert refused.settled.ref is not None
    found = policyctl("explain", refused.settled.ref, "--json").json
    assert [other["recipient"] for other in found["same_mail"]] == ["a@example.net", "b@example.net"]
    assert "asked about 2 more times" in policyctl("explain", refused.settled.ref).out


def test_a_queue_id_leads_to_the_whole_mail(sample: Sample, policyctl: Run) -> None:
    """Postfix knows the queue id only after the first recipient; of a queue id used twice the newest mail is meant."""
    sample.ask(instance="1a.2b.3b.0", queue_id="4F3A1B9999", recipient="", recipient_count="9")
    sample.ask(protocol_state="RCPT", recipient="a@example.net", instance="1a.2b.3c.0", queue_id="")
    for stage, recipient in (("RCPT", "b@example.net"), ("END-OF-MESSAGE", "")):
        sample.ask(
            protocol_state=stage,
            recipient=recipient,
            recipient_count="2",
            instance="1a.2b.3c.0",
            queue_id="4F3A1B9999",
        )
    ran = policyctl("explain", "4F3A1B9999", "--json")
    assert (ran.json["verdict"], ran.json["stage"]) == ("pass", "END-OF-MESSAGE")
    assert [other["recipient"] for other in ran.json["same_mail"]] == ["a@example.net", "b@example.net"]
    assert "policyctl log --queue-id 4F3A1B9999" in ran.err


def test_what_names_nothing_is_not_found(sample: Sample, policyctl: Run) -> None:
    """Exit code 3 and one line; never a row that only resembles it."""
    sample.ask()
    for pasted in ("7F3K2", "%", "a b c", "4F3A1B", "' OR 1=1"):
        ran = policyctl("explain", pasted)
        assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1), pasted


def test_explain_reads_stdin(sample: Sample, policyctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pasted line can be piped in."""
    decision = sample.ask()
    text = f"x instance={decision.request.instance} y\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert policyctl("explain", "-", "--json").json["id"] == decision.id


def test_clues_take_the_surest_first() -> None:
    """What is named comes before what only looks like it."""
    assert clues("id=2 ref=7F3K2 queue_id=4F3A1B0001") == [("ref", "7F3K2"), ("queue_id", "4F3A1B0001")]
    assert clues("ref=- queue_id=4F3A1B0001")[0] == ("queue_id", "4F3A1B0001")
    assert clues("postfix/smtpd[1]: 4cW2yz0bcdZ12: client=x")[0] == ("queue_id", "4cW2yz0bcdZ12")


def test_a_reference_is_read_as_people_write_it() -> None:
    """Small letters, and the letters that Crockford's base 32 leaves out."""
    assert reference_of(" ref 7f3ko. ") == "7F3K0"
    assert reference_of("7F3Kl") == "7F3K1"


def test_moments_of_the_past() -> None:
    """Durations ago, times of today or yesterday, dates; anything else is named."""
    now = datetime(2026, 11, 23, 12, 0).astimezone()
    assert parse_past("2h", now) == now.replace(hour=10)
    assert parse_past("90m ago", now) == now.replace(hour=10, minute=30)
    assert parse_past("08:30", now) == now.replace(hour=8, minute=30)
    assert parse_past("18:30", now) == now.replace(day=22, hour=18, minute=30)
    assert parse_past("today", now) == now.replace(hour=0)
    assert parse_past("yesterday 7:05", now) == now.replace(day=22, hour=7, minute=5)
    assert parse_past("2026-11-01", now) == now.replace(day=1, hour=0)
    assert parse_past("2026-11-01T08:15:30", now) == now.replace(day=1, hour=8, minute=15, second=30)
    for wrong in ("soon", "25:00", "2026-13-01", "-2h", "2 fortnights"):
        with pytest.raises(ValueError, match="is no time; write 2h"):
            parse_past(wrong, now)


def test_try_decides_like_the_daemon_and_leaves_no_trace(sample: Sample, policyctl: Run) -> None:
    """The same decision as the next request gets, and not a bit of the database changes."""
    sample.ask(recipient="", recipient_count="3")
    before = list(sample.connection.iterdump())
    arguments = ("try", "user=alice", "sender=alice@example.org", "stage=END-OF-MESSAGE", "size=1000")
    fits = policyctl(*arguments, "recipients=2", "--json").json
    too_many = policyctl(*arguments, "recipients=3", "--json").json
    assert (fits["verdict"], too_many["verdict"], too_many["by"]) == ("pass", "refuse", "quota")
    assert too_many["ref"] is None
    assert list(sample.connection.iterdump()) == before
    assert sample.ask(recipient="", recipient_count="3").settled.reason == too_many["reason"]
    assert sample.ask(recipient="", recipient_count="2").settled.verdict == "pass"
    text = policyctl(*arguments, "recipients=1").out
    assert "would be refused by check quota" in text
    assert text.endswith("nothing was counted or written down\n")


def test_try_reads_a_file_in_postfix_form(sample: Sample, policyctl: Run, config_path: object) -> None:
    """A captured request can be decided again."""
    from pathlib import Path

    file = Path(str(config_path)).parent / "request"
    file.write_text(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nsender=x=y@example.com\n\n",
        encoding="ascii",
    )
    found = policyctl("try", str(file), "--json").json
    assert (found["sender"], found["direction"], found["stage"]) == ("x=y@example.com", "mx", "RCPT")
    file.write_text("no request at all\n", encoding="ascii")
    ran = policyctl("try", str(file))
    assert ran.code == 1
    assert ran.err.startswith(f"policyctl: {file}: no policy request")
    assert policyctl("try", str(file) + "-missing").code == 1
    assert policyctl("try", "sender", "user=x").code == 2


def test_mail_from_outside_has_no_account(sample: Sample, policyctl: Run) -> None:
    """The client stands in its own line, and not as an account."""
    decided = sample.ask(sasl_method="", sasl_username="", policy_context="", queue_id="4QXABC")
    assert decided.request.account == ""
    text = policyctl("explain", "4QXABC").out
    assert f"  client      {decided.request.client_address}" in text
    assert "  account " not in text


@pytest.mark.parametrize(
    "damage", ['{"checks": [["a"]]}', "[]", "{", '{"limits": [[1, 2, 3, 4, 5, 6, 7, 8]]}', "7"]
)
@pytest.mark.parametrize("column", ["detail", "charges"])
def test_a_decision_that_cannot_be_read_is_told_in_one_line(
    sample: Sample, policyctl: Run, column: str, damage: str
) -> None:
    """It is named; the list for people, which needs none of that, goes on."""
    if (column, damage) == ("charges", "[]"):
        return
    sample.ask(queue_id="4QXABC")
    table = next(
        name
        for (name,) in sample.connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if name.startswith("decision_") and name[9:].isdigit()
    )
    sample.connection.execute(f"UPDATE {table} SET {column} = ?", (damage,))
    for command in (("explain", "4QXABC"), ("log", "--json")):
        ran = policyctl(*command)
        assert ran.code == 1
        assert "decision 1 of" in ran.err
        assert "cannot be read" in ran.err
        assert ran.err.count("\n") == 1
    assert len(policyctl("log").out.splitlines()) == 1
