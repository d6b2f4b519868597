"""why, quota show and quota top: what an admin is told about an account."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.units import DAY, HOUR
from tests.cli.conftest import Run
from tests.sample_database import Sample

ALICE = "alice@example.org"


def test_an_account_with_room_can_send(sample: Sample, policyctl: Run) -> None:
    """With room the answer is yes, and nothing is offered to help."""
    sample.ask()
    ran = policyctl("why", "alice", "--json")
    assert ran.code == 0
    assert ran.json["can_send"] is True
    assert ran.json["helps"] == []
    assert f"{ALICE} can send now" in policyctl("why", ALICE).out


def test_an_exhausted_account_is_told_when_and_how(sample: Sample, policyctl: Run) -> None:
    """Rule, numbers, time, last refusal and its reference, and a command that really helps."""
    sample.ask(recipient="", recipient_count="5")
    refused = sample.ask(recipient="", recipient_count="1")
    assert refused.settled.ref is not None
    found = policyctl("why", "alice", "--json").json
    assert (found["can_send"], found["check"]) == (False, "quota")
    assert found["last_refusal"]["ref"] == refused.settled.ref
    full = next(limit for limit in found["limits"] if limit["unit"] == "recipients")
    assert (full["used"], full["allowed"], full["room"]) == (5, 5, 0)
    assert found["can_send_at"] == full["fits_at"]
    text = policyctl("why", "alice").out
    assert "cannot send now: limit reached: 5+1 of 5 recipients per 1h" in text
    assert f"policyctl explain {refused.settled.ref}" in text
    command = found["helps"][0].split()
    assert policyctl(*command[1:]).code == 0
    assert policyctl("why", "alice", "--json").json["can_send"] is True


def test_a_ban_is_named_with_who_set_it_and_what_lifts_it(sample: Sample, policyctl: Run) -> None:
    """Each ban that fits is shown, of the login and of where it sends from, and the commands lift them."""
    sample.ask()
    assert policyctl("ban", "user", "alice", "--for", "2h", "--reason", "stolen").code == 0
    assert policyctl("ban", "client", "192.0.2.0/24").code == 0
    found = policyctl("why", "alice", "--json").json
    assert found["check"] == "bans"
    assert [(ban["kind"], ban["value"]) for ban in found["bans"]] == [
        ("user", ALICE),
        ("client", "192.0.2.0/24"),
    ]
    assert found["can_send_at"] is None, "the client's ban does not end by itself"
    assert "stolen" in policyctl("why", "alice").out
    for command in found["helps"]:
        assert policyctl(*command.split()[1:]).code == 0, command
    assert policyctl("why", "alice", "--json").json["can_send"] is True


def test_why_lists_the_bans_that_hold_and_no_others(
    sample: Sample, policyctl: Run, config_path: Path
) -> None:
    """What is never banned, or is no name at all, is not told as banned; a name's final dot does not matter."""
    sample.ask(sender="boss@example.org", client_name="host.example.net.")
    for ban in (
        ("domain", "example.org"),
        ("client", "unknown"),
        ("client", "example.net"),
        ("client", "192.0.2.0/24"),
    ):
        assert policyctl("ban", *ban).code == 0
    found = policyctl("why", "alice", "--json").json
    assert [(ban["kind"], ban["value"]) for ban in found["bans"]] == [
        ("domain", "example.org"),
        ("client", "192.0.2.0/24"),
        ("client", "example.net"),
    ]
    text = config_path.read_text().replace(
        'use = "bans"', 'use = "bans"\nnever = ["boss@example.org", "192.0.2.1"]'
    )
    config_path.write_text(text)
    sample.ask(sender="boss@example.org", client_address="192.0.2.1", client_name="unknown")
    found = policyctl("why", "alice", "--json").json
    assert (found["bans"], found["can_send"]) == ([], True)


def test_a_ban_in_shadow_is_not_what_stops_an_account(sample: Sample, policyctl: Run) -> None:
    """It is recorded as what would have been."""
    sample.ask()
    assert policyctl("ban", "user", "alice").code == 0
    assert policyctl("check", "shadow", "bans", "--for", "1h").code == 0
    found = policyctl("why", "alice", "--json").json
    assert (found["bans"], found["can_send"]) == ([], True)


def test_a_ban_under_an_allow_is_told_to_have_no_effect(sample: Sample, policyctl: Run) -> None:
    """By ban when it is set, and by why; without the allow it holds, and nothing is said."""
    sample.ask()
    assert policyctl("allow", "client", "192.0.2.0/24").code == 0
    said = policyctl("ban", "user", "alice").err
    assert "allowed client 192.0.2.0/24 (check allow) comes before the bans" in said
    assert "no effect" in said
    found = policyctl("why", "alice", "--json").json
    assert (found["can_send"], found["bans"]) == (True, [])
    assert any(
        f"the ban of user {ALICE} has no effect on this mail: allowed client 192.0.2.0/24" in remark
        for remark in found["remarks"]
    )
    assert policyctl("unallow", "client", "192.0.2.0/24").code == 0
    assert policyctl("ban", "user", "alice").err == ""
    assert policyctl("why", "alice", "--json").json["can_send"] is False


@pytest.mark.parametrize(
    ("allow", "ban", "warned"),
    [
        (("domain", "example.net"), ("sender", "news@example.net"), True),
        (("domain", "example.net"), ("domain", "mail.example.net"), True),
        (("domain", ".example.net"), ("domain", "example.net"), False),
        (("domain", ".example.net"), ("domain", ".example.net"), True),
        (("client", "example.net"), ("client", "mx.example.net"), True),
        (("client", "192.0.2.0/24"), ("client", "192.0.2.7"), True),
        (("client", "192.0.2.0/24"), ("client", "198.51.100.7"), False),
        (("recipient", "abuse@example.org"), ("sender", "news@example.net"), False),
    ],
)
def test_each_kind_of_ban_is_warned_of_an_allow_that_covers_it(
    sample: Sample, policyctl: Run, allow: tuple[str, str], ban: tuple[str, str], warned: bool
) -> None:
    """An allow that covers the banned value is told, and only one that does."""
    assert policyctl("allow", *allow).code == 0
    assert ("no effect" in " ".join(policyctl("ban", *ban).err.split())) is warned


def test_bans_before_the_allow_are_not_warned_of(sample: Sample, policyctl: Run, config_path: Path) -> None:
    """Only what stands earlier lets pass."""
    text = config_path.read_text()
    for old, new in (('"allow"', '"x"'), ('"bans"', '"allow"'), ('"x"', '"bans"')):
        text = text.replace(f"use = {old}", f"use = {new}")
    config_path.write_text(text)
    sample.ask()
    assert policyctl("allow", "client", "192.0.2.0/24").code == 0
    assert policyctl("ban", "user", "alice").err == ""
    assert policyctl("why", "alice", "--json").json["can_send"] is False


def test_a_counter_that_cannot_be_read_is_told_in_one_line(sample: Sample, policyctl: Run) -> None:
    """quota show and why name it; quota top leaves it out, says so, and ranks the others."""
    sample.ask(recipient="", recipient_count="2")
    sample.ask(recipient="", recipient_count="3", sasl_username="bob")
    damaged = "UPDATE counter SET cells = ? WHERE value = ?"
    for cells in (b"no counter", b""):
        sample.connection.execute(damaged, (cells, ALICE))
        for command in (("quota", "show", "alice"), ("why", "alice")):
            ran = policyctl(*command)
            assert ran.code == 1
            assert ran.err.count("\n") == 1
            assert f"the counter of user {ALICE} (recipients/external) cannot be read" in ran.err
        ran = policyctl("quota", "top", "--json")
        assert ran.code == 0
        assert [row["value"] for row in ran.json] == ["bob@example.org"]
        assert f"the counter of user {ALICE}" in ran.err
        assert "is left out" in ran.err


@pytest.mark.parametrize("running", [None, False])
def test_whether_policyd_runs_may_be_unknown(
    sample: Sample, policyctl: Run, monkeypatch: pytest.MonkeyPatch, running: bool | None
) -> None:
    """Who may not look is told so by each command, and never that it does not run; prune leaves its hands off."""
    from policyd.store import locks

    sample.ask()
    monkeypatch.setattr(locks, "daemon_running", lambda path: running)
    for command in (("status",), ("why", "alice")):
        out = policyctl(*command).out
        assert ("whether policyd runs is unknown; run policyctl as root" in out) is (running is None)
        assert ("policyd does not run" in out) is (running is False)
    assert policyctl("status").code == (1 if running is None else 4)
    assert policyctl("status", "--json").json["running"] is running
    if running is None:
        assert "whether policyd runs is unknown, so nothing was changed" in policyctl("db", "prune").out


def test_why_decides_like_the_next_request(sample: Sample, policyctl: Run) -> None:
    """What why says before is what the daemon answers after, at every fill of the window."""
    for number in range(7):
        said = policyctl("why", "alice", "--json").json["can_send"] if number else True
        decided = sample.ask().settled.verdict == "pass"
        if sample.connection.execute("SELECT decision_id FROM ledger_state").fetchone()[0] > 1:
            assert said == decided


def test_a_pause_is_told(sample: Sample, policyctl: Run) -> None:
    """While everything is paused a full account can send, and why says why."""
    sample.ask(recipient="", recipient_count="5")
    assert policyctl("pause", "--for", "1h").code == 0
    found = policyctl("why", "alice", "--json").json
    assert found["can_send"] is True
    assert any("paused" in remark for remark in found["remarks"])
    assert found["would"].startswith("quota: 450")


def test_an_account_not_seen_for_a_day_is_told_where_to_look(sample: Sample, policyctl: Run) -> None:
    """Silence for a day is said, with where to look."""
    sample.ask(2 * DAY)
    remarks = policyctl("why", "alice", "--json").json["remarks"]
    assert any("has not asked about it since" in remark and "Postfix's log" in remark for remark in remarks)
    sample.ask()
    remarks = policyctl("why", "alice", "--json").json["remarks"]
    assert not any("has not asked" in remark for remark in remarks)


def test_an_unknown_account_gets_a_proposal_and_exit_code_3(sample: Sample, policyctl: Run) -> None:
    """A name that was never seen is not found, and the nearest one is offered."""
    sample.ask()
    for command in (("why",), ("quota", "show")):
        ran = policyctl(*command, "alcie")
        assert (ran.code, ran.out) == (3, "")
        assert ran.err == "policyctl: alcie@example.org was never seen; did you mean alice@example.org?\n"


def test_accounts_that_are_no_logins_can_be_named(sample: Sample, policyctl: Run) -> None:
    """A client of our own networks is an account, too."""
    sample.ask(
        sasl_username="", sasl_method="", client_address="127.0.0.9", recipient="", recipient_count="5"
    )
    found = policyctl("why", "client:127.0.0.9", "--json").json
    assert (found["can_send"], found["check"]) == (False, "quota")


def test_quota_show_gives_every_window(sample: Sample, policyctl: Run) -> None:
    """Used, limit, room and when it returns, of each check; grants and own limits stand beside."""
    sample.ask(10 * 60_000, recipient="", recipient_count="2")
    sample.ask(recipient="", recipient_count="1", size="1500000")
    assert (
        policyctl(
            "quota", "grant", "alice", "100", "recipients", "--for", "1d", "--reason", "newsletter"
        ).code
        == 0
    )
    assert policyctl("quota", "set", "alice", "50 messages per 1d").code == 0
    found = policyctl("quota", "show", "alice", "--json").json
    assert found["tier"] == "new"
    limits = {(limit["check"], limit["unit"], limit["window_ms"]): limit for limit in found["limits"]}
    recipients = limits["quota", "recipients", HOUR]
    assert (recipients["used"], recipients["limit"], recipients["granted"], recipients["room"]) == (
        3,
        5,
        100,
        102,
    )
    assert recipients["returns_from"] < recipients["all_back"]
    assert limits["quota", "bytes", DAY]["used"] == 1_501_000
    assert limits["quota", "messages", DAY]["room"] == 50
    assert (
        limits["whole-server", "messages", HOUR]["mode"],
        limits["whole-server", "messages", HOUR]["used"],
    ) == ("shadow", 2)
    assert found["grants"][0]["reason"] == "newsletter"
    text = policyctl("quota", "show", "alice").out
    assert "5 + 100" in text
    assert "1.5MB" in text
    assert "granted: 100 recipients more in every window" in text
    assert "own limit: 50 messages per 1d" in text


def test_the_time_that_is_named_is_when_it_fits(sample: Sample, policyctl: Run) -> None:
    """At the time that quota show names, settle lets the next one pass, and not a slot before."""
    from datetime import datetime

    from policyd.opinion import CounterKey
    from policyd.store import known

    sample.ask(30 * 60_000, recipient="", recipient_count="2")
    sample.ask(20 * 60_000, recipient="", recipient_count="3")
    limits = policyctl("quota", "show", "alice", "--json").json["limits"]
    fits_at = datetime.fromisoformat(next(limit for limit in limits if limit["room"] == 0)["fits_at"])
    counter = known.counter(sample.connection, CounterKey("user", ALICE, "recipients/external"))
    at = round(fits_at.timestamp() * 1000)
    # The wall clock and ledger time of a sample are the same but for the milliseconds between two looks.
    assert counter.used(HOUR, at + 100) == 3
    assert counter.used(HOUR, at - 100) == 5


def test_top_ranks_by_what_is_in_the_window(sample: Sample, policyctl: Run) -> None:
    """Who sent most stands first; what is out of the window does not count."""
    sample.ask(HOUR // 2, sasl_username="carol", recipient="", recipient_count="5")
    sample.ask(sasl_username="bob", recipient="", recipient_count="2")
    sample.ask(recipient="", recipient_count="3")
    day = policyctl("quota", "top", "--json", "--window", "1h").json
    assert [(row["value"].partition("@")[0], row["external"]) for row in day] == [
        ("carol", 5),
        ("alice", 3),
        ("bob", 2),
    ]
    lately = policyctl("quota", "top", "--window", "10m", "-n", "1", "--json").json
    assert [row["value"] for row in lately] == [ALICE]
    assert (
        policyctl("quota", "top", "--per", "client").out == "nothing was counted per client in the last 1d\n"
    )
    assert policyctl("quota", "top", "--window", "soon").code == 2


def test_only_what_is_in_shadow_now_is_told_to_be(sample: Sample, policyctl: Run) -> None:
    """A check that the file has in shadow and that was set to enforce by hand does refuse."""
    sample.ask()
    assert "only in shadow, by the configuration: whole-server" in policyctl("why", "alice").out
    assert policyctl("check", "enforce", "whole-server", "--for", "1h").code == 0
    text = policyctl("why", "alice").out
    assert "only in shadow" not in text
    assert "check whole-server is set to enforce" in text


def test_a_client_is_asked_about_by_its_address(sample: Sample, policyctl: Run) -> None:
    """Which ban or allow holds for it, in whatever spelling; never taken for a login."""
    sample.ask(sasl_method="", client_address="203.0.113.7", sender="x@example.net")
    assert "client 203.0.113.7 can send now" in policyctl("why", "203.0.113.7").out
    assert policyctl("ban", "client", "203.0.113.0/24", "--reason", "spam").code == 0
    ran = policyctl("why", "[203.0.113.7]", "--json")
    assert (ran.json["client"], ran.json["user"], ran.json["can_send"]) == ("203.0.113.7", None, False)
    assert [ban["value"] for ban in ran.json["bans"]] == ["203.0.113.0/24"]
    assert ran.json["helps"] == ["policyctl unban client 203.0.113.0/24"]
    assert policyctl("allow", "client", "203.0.113.7").code == 0
    found = policyctl("why", "203.0.113.7", "--json").json
    assert found["can_send"] is True
    assert any("the ban of client 203.0.113.0/24 has no effect" in remark for remark in found["remarks"])


def test_a_client_never_seen_has_an_answer_too(sample: Sample, policyctl: Run) -> None:
    """A ban holds for whoever has not come yet; a network is no client."""
    assert policyctl("ban", "client", "2001:db8::/32").code == 0
    found = policyctl("why", "2001:db8::7", "--json").json
    assert (found["can_send"], found["check"]) == (False, "bans")
    assert any("no mail from this client" in remark for remark in found["remarks"])
    ran = policyctl("why", "203.0.113.0/24")
    assert (ran.code, ran.out) == (2, "")
    assert "is a network" in ran.err


def test_a_sender_that_is_not_the_logins_stops_that_sender_alone(
    sample: Sample, policyctl: Run, config_path: Path
) -> None:
    """Whoever wrote as somebody else can still send as itself: that is said, and the command that helps allows the sender."""
    config_path.write_text(
        config_path.read_text() + '\n[[check]]\nuse = "sender_login"\nfor = "submission"\n'
    )
    sample.ask(protocol_state="RCPT", sender="Boss@example.org")
    found = policyctl("why", "alice", "--json").json
    assert (found["can_send"], found["check"], found["sender"]) == (False, "sender_login", "Boss@example.org")
    text = policyctl("why", "alice").out
    assert text.startswith(f"{ALICE} cannot send as Boss@example.org, as it did last: ")
    assert f"note: as {ALICE} it can send now" in text
    assert found["helps"] == [f"policyctl sender allow {ALICE} Boss@example.org"]
    assert policyctl(*found["helps"][0].split()[1:]).code == 0
    assert policyctl("why", "alice", "--json").json["can_send"] is True
    assert policyctl("sender", "rm", ALICE, "Boss@example.org").code == 0
    assert policyctl("ban", "client", "192.0.2.7").code == 0
    assert f"{ALICE} cannot send now: banned" in policyctl("why", "alice").out


def test_a_stranger_who_was_seen_is_not_said_to_be_unseen(sample: Sample, policyctl: Run) -> None:
    """The sender in a refusal is no account: the way to what is known of it is named."""
    sample.ask(sasl_method="", sasl_username="", sender="Carol@example.net", protocol_state="RCPT")
    ran = policyctl("why", "carol@example.net")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        "policyctl: carol@example.net is no account that was seen; mail with this sender came from outside, see "
        "'policyctl log --sender carol@example.net'\n"
    )
    assert "Postfix has not asked about it" in policyctl("why", "dave@example.net").err


def test_a_greylisted_client_is_delayed_and_a_known_one_can_send(
    sample: Sample, policyctl: Run, config_path: Path
) -> None:
    """By the triplet of its last mail: who passed is no stranger, and a stranger need not be allowed to pass."""
    config_path.write_text(config_path.read_text() + '\n[[check]]\nuse = "greylist"\nfor = "mx"\n')
    stranger = {
        "sasl_method": "",
        "sasl_username": "",
        "sender": "carol@example.net",
        "protocol_state": "RCPT",
    }
    sample.ask(**stranger, client_address="203.0.113.7", recipient="alice@example.org")
    ran = policyctl("why", "203.0.113.7")
    assert ran.out.startswith("client 203.0.113.7 is delayed now: greylisted: first seen")
    assert "such mail passes when its server tries again" in ran.out
    assert "does not end by itself" not in ran.out
    found = policyctl("why", "203.0.113.7", "--json").json
    assert found["helps"] == ["policyctl greylist allow client 203.0.113.7 --for 1d"]
    assert not any("DNS" in remark for remark in found["remarks"])
    now = sample.clock.now()
    sample.connection.execute(
        "INSERT INTO memory (kind, key, first_at, last_at, hits, expires_at) VALUES ('greylist-passed', ?, ?, ?, 1, ?)",
        ("203.0.113.0/24 carol@example.net alice@example.org", now - HOUR, now, now + DAY),
    )
    assert "client 203.0.113.7 can send now" in policyctl("why", "203.0.113.7").out
    assert policyctl("greylist", "allow", "client", "203.0.113.9").code == 0
    assert "client 203.0.113.9 can send now" in policyctl("why", "203.0.113.9").out
