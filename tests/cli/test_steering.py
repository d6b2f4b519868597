"""What an admin changes with policyctl: it holds, it is recorded, and a wrong command changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.steering import TABLES
from policyd.units import DAY, HOUR
from tests.cli.place import CONFIG, Place
from tests.sample_database import Sample

ALICE = "alice@example.org"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Scene:
    """A place whose database a daemon's ledger has open."""

    def __init__(self, directory: Path) -> None:
        self.sample = Sample(directory / "policyd.db", limits=("5 recipients per 1h",))
        self.place = Place(directory)

    def sends(self, recipients: int, **attributes: str) -> str:
        """The verdict on a mail of alice's. The chain is asked with the steering data as of now, as the daemon's is."""
        self.sample.ledger.begin()
        self.sample.ledger.rollback()
        return self.sample.ask(recipient_count=str(recipients), **attributes).settled.verdict

    def does(self, *words: str) -> str:
        """Run policyctl, which must work; what it said."""
        result = self.place.run(*words)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.sample.close()


# --- what is changed holds from the next request on -------------------------------------------------------------------


def test_a_ban_holds_from_the_next_request_on(scene: Scene) -> None:
    """Banned, refused; unbanned, accepted: by a ledger that had the database open all the time."""
    assert scene.sends(1) == "pass"
    scene.does("ban", "user", "Alice", "--for", "1h")
    assert scene.sends(1) == "refuse"
    scene.does("unban", "user", ALICE)
    assert scene.sends(1) == "pass"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("sender", "ALICE@example.org"),
        ("domain", "example.org"),
        ("client", "198.51.100.0/24"),
        ("client", ".example.net"),
    ],
)
def test_every_kind_of_ban(scene: Scene, kind: str, value: str) -> None:
    """Sender, domain, network and host name are refused alike."""
    asked = {"client_address": "198.51.100.9"}
    assert scene.sends(1, **asked) == "pass"
    scene.does("ban", kind, value)
    assert scene.sends(1, **asked) == "refuse"


def test_an_allow_holds_from_the_next_request_on(scene: Scene) -> None:
    """What is allowed passes a limit that would refuse it, until it is taken back."""
    assert scene.sends(6) == "refuse"
    scene.does("allow", "sender", ALICE, "--for", "7d")
    assert scene.sends(6) == "pass"
    scene.does("disallow", "sender", ALICE)
    assert scene.sends(6) == "refuse"


def test_a_grant_widens_the_window(scene: Scene) -> None:
    """A grant gives room at once, and taken back gives none."""
    assert scene.sends(5) == "pass"
    assert scene.sends(1) == "refuse"
    scene.does(
        "quota", "grant", "alice", "10", "recipients", "--until", "tomorrow 08:00", "--reason", "invitation"
    )
    assert scene.sends(10) == "pass"
    assert scene.sends(1) == "refuse"
    scene.does("grant", "rm", "1")
    assert "no grant" in scene.does("grant")


def test_a_reset_is_noticed_by_a_running_ledger(scene: Scene) -> None:
    """After `quota reset` the account begins anew, though the daemon had its counters in memory; others keep theirs."""
    assert scene.sends(5) == "pass"
    assert scene.sends(5, sasl_username="bob") == "pass"
    scene.does("quota", "reset", "alice")
    assert scene.sends(5) == "pass"
    assert scene.sends(1) == "refuse"
    assert scene.sends(1, sasl_username="bob") == "refuse"


def test_a_dry_run_of_a_reset_resets_nothing(scene: Scene) -> None:
    """--dry-run says so, and the account is as full as before."""
    assert scene.sends(5) == "pass"
    assert "nothing is changed" in scene.does("quota", "reset", "alice", "--dry-run")
    assert scene.sends(1) == "refuse"


def test_a_pause_lets_mail_pass_and_bans_stay(scene: Scene) -> None:
    """In a pause a full account sends, a banned one does not, and `resume` ends it."""
    assert scene.sends(5) == "pass"
    scene.does("pause", "--for", "1h")
    assert scene.sends(1) == "pass"
    scene.does("ban", "sender", "mallory@example.net")
    assert scene.sends(1, sender="mallory@example.net") == "refuse"
    scene.does("resume")
    assert scene.sends(1) == "refuse"


def test_modes_of_one_check(scene: Scene) -> None:
    """shadow and off let pass what enforce refuses; auto is what the configuration says."""
    assert scene.sends(6) == "refuse"
    for words, verdict in (("shadow", "pass"), ("enforce", "refuse"), ("off", "pass"), ("auto", "refuse")):
        scene.does("check", words, "quota")
        assert scene.sends(6) == verdict


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_ban_is_one_row_with_its_history(place: Place) -> None:
    """Value in canonical form, reason, author, end; one change for the daemon, one line of history."""
    result = place.run(
        "ban", "user", "ALICE", "--for", "24h", "--reason", "phished", env={"SUDO_USER": "ruth"}
    )
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"banned user {ALICE}, until 2")
    ((kind, value, reason, author, created, expires),) = place.ask("SELECT * FROM ban")
    assert (kind, value, reason, author) == ("user", ALICE, "phished", "ruth")
    assert expires - created == DAY
    assert place.ask("SELECT tbl, key FROM change") == [("ban", f'["user","{ALICE}"]')]
    history = place.ask("SELECT author, action, subject, reason FROM history")
    assert history == [("ruth", "ban user", ALICE, "phished")]


def test_a_ban_set_again_is_replaced(place: Place) -> None:
    """The newer end holds, and the answer says what was before."""
    place.run("ban", "sender", "x@example.net")
    result = place.run("ban", "sender", "X@example.net", "--for", "1h")
    assert "(before: until taken back, by root)" in result.output
    ((created, expires),) = place.ask("SELECT created_at, expires_at FROM ban")
    assert expires - created == HOUR


def test_until_is_what_was_typed(place: Place) -> None:
    """The end is printed as it was meant, to the minute."""
    result = place.run("ban", "sender", "x@example.net", "--until", "tomorrow 08:00")
    assert " 08:00 " in result.output
    assert " 08:00 " in place.run("bans").output


def test_an_expired_ban_is_not_listed(place: Place) -> None:
    """What has ended is no ban: not in the list, not to be lifted, and gone with the next change."""
    place.write("INSERT INTO ban VALUES ('sender', 'old@example.net', '', 'root', 1, 2)")
    assert place.json("bans") == []
    assert place.run("unban", "sender", "old@example.net").exit_code == 3
    place.run("ban", "sender", "new@example.net")
    assert place.ask("SELECT value FROM ban") == [("new@example.net",)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("client", "2001:DB8::/32"), "2001:db8::/32"),
        (("client", "[2001:db8::1]"), "2001:db8::1"),
        (("client", "::ffff:198.51.100.1"), "198.51.100.1"),
        (("client", "Mail.Example.NET."), "mail.example.net"),
        (("domain", "@Example.NET"), "example.net"),
        (("sender", "<>"), ""),
    ],
)
def test_canonical_forms(place: Place, given: tuple[str, str], kept: str) -> None:
    """Each spelling is the same ban, and can be lifted in any of them."""
    assert place.run("ban", *given).exit_code == 0
    assert place.ask("SELECT value FROM ban") == [(kept,)]
    assert place.run("unban", *given).exit_code == 0
    assert place.ask("SELECT value FROM ban") == []


def test_a_list_on_stdin(place: Place) -> None:
    """'-' reads one value a line; empty lines and comments are left out."""
    lines = "# from the ticket\nb@example.net\n\n  a@example.net # and this\r\nb@example.net\n"
    assert place.run("ban", "sender", "-", stdin=lines).exit_code == 0
    assert [row["value"] for row in place.json("bans", "sender")] == ["a@example.net", "b@example.net"]
    assert place.run("unban", "sender", "-", stdin="a@example.net\nb@example.net\n").exit_code == 0
    assert place.json("bans") == []
    assert place.run("ban", "sender", "-", stdin="\n# nothing\n").exit_code == 2


def test_quota_set_replaces_the_same_unit_and_window(place: Place) -> None:
    """Another window is another limit; the same one is replaced; quotes are not needed."""
    place.run("quota", "set", "alice", "500 recipients per 1h", "1GB per 1d")
    place.run("quota", "set", "alice", "600", "recipients", "per", "60m", "unlimited", "bytes", "per", "1d")
    limits = [row["limit"] for row in place.json("quota", "list", "alice")]
    assert sorted(limits) == ["600 recipients per 1h", "unlimited bytes per 1d"]
    assert place.ask("SELECT amount FROM user_limit WHERE unit = 'bytes'") == [(-1,)]
    assert place.run("quota", "unset", "alice", "recipients per 1h").exit_code == 0
    assert [row["limit"] for row in place.json("quota")] == ["unlimited bytes per 1d"]
    assert place.run("quota", "rm", "alice").exit_code == 0
    assert place.json("quota") == []
    assert place.run("quota", "unset", "alice").exit_code == 3


def test_show_of_each_noun(place: Place) -> None:
    """`show` prints the one that is named, and fails with 3 for what is not there."""
    place.run("ban", "user", "alice", "--reason", "phished")
    place.run("allow", "client", "198.51.100.0/24")
    place.run("grant", "alice", "5MB", "--for", "1h")
    assert "phished" in place.run("ban", "show", "user", "alice").output
    assert "198.51.100.0/24" in place.run("allow", "show", "client", "198.51.100.0/24").output
    assert "5MB" in place.run("grant", "show", "1").output
    assert place.json("grant", "show", "alice")[0]["amount"] == 5_000_000
    assert "quota" in place.run("check", "show", "quota").output
    for words in (("ban", "show", "user", "bob"), ("allow", "show", "client", "::1"), ("grant", "show", "9")):
        assert place.run(*words).exit_code == 3


def test_check_list_says_who_paused(place: Place) -> None:
    """The mode in force, the configured one, and why they differ."""
    place.run("pause", "--for", "1h", "--reason", "newsletter", env={"SUDO_USER": "ruth"})
    modes = {row["name"]: (row["mode"], row["configured"]) for row in place.json("check")}
    assert modes == {
        "allow": ("enforce", "enforce"),
        "bans": ("enforce", "enforce"),
        "quota": ("shadow", "enforce"),
    }
    assert "paused by ruth" in place.run("check").output
    place.run("resume")
    place.run("check", "off", "quota", "--for", "2h")
    assert place.json("check", "show", "quota")[0]["mode"] == "off"
    assert "was in its configured mode" not in place.run("check", "auto", "quota").output
    assert "already" in place.run("check", "auto", "quota").output
    assert "nothing was paused" in place.run("resume").output


def test_a_mode_of_a_check_that_is_no_longer_configured(place: Place) -> None:
    """It can still be taken back."""
    place.write("INSERT INTO check_mode VALUES ('gone', 'off', '', 'root', 1, 0)")
    assert place.run("check", "auto", "gone").exit_code == 0
    assert place.run("check", "auto", "gone").exit_code == 3


def test_tiers(place: Place) -> None:
    """Tiers as they are configured, the default one marked."""
    tiers = {row["tier"]: row for row in place.json("tier")}
    assert tiers["new"]["default"]
    assert tiers["bulk"]["limits"] == ["5000 recipients per 1h", "1GB per 1d"]
    assert "news@example.org" in place.run("tier", "show", "bulk").output
    assert "(the default)" in place.run("tier", "show", "new").output


def test_history(place: Place) -> None:
    """Newest first; of one subject in any spelling."""
    place.run("ban", "user", "alice", "--reason", "phished")
    place.run("unban", "user", "alice", "--reason", "password changed")
    place.run("check", "off", "quota")
    assert [row["action"] for row in place.json("history")] == ["check off", "unban user", "ban user"]
    assert [row["reason"] for row in place.json("history", "Alice")] == ["password changed", "phished"]
    assert len(place.json("history", "-n", "1")) == 1
    assert "password changed" in place.run("history").output


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["ban", "user", "alice@exmaple.org"],
            3,
            f"was never seen; did you mean {ALICE}? (--force sets it anyway)",
        ),
        (["ban", "user", "bob"], 3, "bob@example.org was never seen"),
        (["quota", "set", "alcie", "5 messages per 1h"], 3, f"did you mean {ALICE}?"),
        (["grant", "alcie", "5", "messages", "--for", "1h"], 3, f"did you mean {ALICE}?"),
        (["quota", "reset", "alcie"], 3, f"did you mean {ALICE}?"),
        (["unban", "user", "alcie"], 3, "alcie@example.org is not banned"),
        (["unallow", "client", "198.51.100.1"], 3, "not allowed"),
        (["grant", "rm", "7"], 3, "no grant 7"),
        (["grant", "rm", "alice"], 3, "no grant in force"),
        (["check", "off", "qouta"], 3, "did you mean quota?"),
        (["check", "auto", "qouta"], 3, "did you mean quota?"),
        (["ban", "user", "postmaster"], 1, "never list"),
        (["ban", "sender", "x@EXAMPLE.com"], 1, "covered by example.com"),
        (["ban", "domain", "example.com"], 1, "never list"),
        (["ban", "client", "192.0.2.7"], 1, "covered by 192.0.2.0/24"),
        (["ban", "client", "192.0.2.0/25"], 1, "covered by 192.0.2.0/24"),
        (["ban", "sender", "example.net"], 2, "is no address; for a whole domain use 'domain example.net'"),
        (["ban", "client", "192.0.2.1/24"], 2, "write 192.0.2.0/24"),
        (["ban", "client", "300.1.1.1"], 2, "is no IP address"),
        (["ban", "domain", "x y"], 2, "is no domain"),
        (["ban", "user", "a\x1b[2Jb", "--force"], 2, "one printable line"),
        (["ban", "user", "a b", "--force"], 2, "is no login"),
        (["ban", "user", "", "--force"], 2, "is no login"),
        (["ban", "user", "alice", "--reason", "a\nb"], 2, "the reason must be one printable line"),
        (["ban", "user", "alice", "--reason", "x" * 501], 2, "longer than 500"),
        (["ban", "user", "alice", "--for", "18:30"], 2, "--until"),
        (["ban", "user", "alice", "--until", "yesterday"], 2, "is no time"),
        (["ban", "user", "alice", "--until", "2020-01-01"], 2, "in the past"),
        (["ban", "user", "alice", "--for", "1h", "--until", "18:30"], 2, "exclude each other"),
        (["ban", "user", "alice", "--for", "0h"], 2, "no time at all"),
        (["pause"], 2, "say for how long"),
        (["grant", "alice", "5", "messages"], 2, "say for how long"),
        (["grant", "alice", "0", "messages", "--for", "1h"], 2, "widens nothing"),
        (["grant", "alice", "-5", "messages", "--for", "1h"], 2, "-5"),
        (["grant", "alice", "5", "--for", "1h"], 2, "cannot be granted"),
        (["grant", "alice", "5", "mails", "--for", "1h"], 2, "cannot be granted"),
        (["quota", "set", "alice", "5 recipients"], 2, "is no limit"),
        (["quota", "set", "alice", "5 recipients per 900d"], 2, "outside 1s to 366d"),
        (["quota", "set", "alice", "unlimited mails per 1d"], 2, "is no limit"),
        (["quota", "set", "alice", "5 messages per 1h", "6 messages per 60m"], 2, "same unit and window"),
        (["quota", "set", "alice"], 2, "LIMIT"),
        (["history", "-n", "0"], 2, "0"),
    ],
)
def test_a_wrong_command_changes_nothing(place: Place, words: list[str], code: int, says: str) -> None:
    """One line that says what is wrong, the exit code, and every table as it was."""
    before = place.everything()
    result = place.run(*words)
    assert result.exit_code == code, result.output
    assert says in result.output
    assert result.output.count("\n") == 1
    assert place.everything() == before


@pytest.mark.parametrize(
    "words",
    [
        ["ban", "user", "alice"],
        ["unban", "sender", "x@example.net"],
        ["allow", "client", "::1", "--for", "1h"],
        ["unallow", "recipient", "abuse@example.org"],
        ["quota", "set", "alice", "5 messages per 1h"],
        ["quota", "unset", "alice"],
        ["quota", "reset", "alice"],
        ["grant", "alice", "5", "messages", "--for", "1h"],
        ["grant", "rm", "1"],
        ["check", "off", "quota"],
        ["check", "auto", "bans"],
        ["pause", "--for", "1h"],
        ["resume"],
    ],
)
def test_a_dry_run_changes_nothing(place: Place, words: list[str]) -> None:
    """Every changing command has --dry-run: it says what it would do, and every table is as it was."""
    for given in (
        ["ban", "sender", "x@example.net"],
        ["allow", "recipient", "abuse@example.org"],
        ["quota", "set", "alice", "9 messages per 1d"],
        ["grant", "alice", "9", "messages", "--for", "1h"],
        ["check", "shadow", "bans"],
        ["pause", "--for", "1h"],
    ):
        assert place.run(*given).exit_code == 0
    before = place.everything()
    result = place.run(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("dry run, nothing is changed: ")
    assert place.everything() == before
    assert place.json(*words, "--dry-run")["dry_run"] is True
    assert place.run(*words).exit_code == 0
    assert place.everything() != before


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["ban", "sender", "-"], "a@example.net\nno address\n"),
        (["ban", "user", "-"], f"{ALICE}\nnobody@example.org\n"),
        (["ban", "client", "-"], "198.51.100.1\n192.0.2.1\n"),
        (["ban", "sender", "-"], b"a@example.net\nb\xff@example.net\n"),
        (["unban", "sender", "-"], "x@example.net\ny@example.net\n"),
    ],
)
def test_a_list_is_taken_whole_or_not_at_all(place: Place, words: list[str], lines: str | bytes) -> None:
    """One wrong value among many, and nothing is changed."""
    place.run("ban", "sender", "x@example.net")
    before = place.everything()
    assert place.run(*words, stdin=lines).exit_code in (1, 2, 3)
    assert place.everything() == before


def test_force_bans_who_was_never_seen(place: Place) -> None:
    """--force is for a login that has not sent yet; the never list is not overruled."""
    assert place.run("ban", "user", "bob", "--force").exit_code == 0
    assert place.run("ban", "user", "postmaster", "--force").exit_code == 1
    assert [row["value"] for row in place.json("bans")] == ["bob@example.org"]


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("client", "0.0.0.0/0", "client 0.0.0.0/0 is every client"),
        ("client", "10.0.0.0/8", "client 10.0.0.0/8 covers 10.1.0.0/16 of [site]"),
        ("domain", "org", "domain org covers example.org of [site]"),
        ("domain", ".org", "domain .org covers example.org of [site]"),
        ("domain", "example.org", "domain example.org covers example.org of [site]"),
    ],
)
def test_a_ban_of_oneself_is_remarked(place: Place, kind: str, value: str, words: str) -> None:
    """A slip at night that refuses all own mail is seen at once, with the way back."""
    text = place.config.read_text().replace("[site]", '[site]\nnetworks = ["10.1.0.0/16"]', 1)
    place.config.write_text(text)
    ran = place.ran("ban", kind, value)
    assert ran.exit_code == 0
    assert f"{words}: your own mail is refused, too; 'policyctl unban {kind} {value}' lifts it" in ran.stderr
    for other in ("198.51.100.0/24", "10.1.2.3"):
        assert "your own mail" not in place.ran("ban", "client", other).stderr
    assert "your own mail" not in place.ran("ban", "domain", ".example.org").stderr


def test_a_network_around_a_spared_one_can_be_banned(place: Place) -> None:
    """The never list spares its own part; the rest of the network is refused."""
    assert place.run("ban", "client", "192.0.0.0/16").exit_code == 0


def test_hostile_text_in_the_database_paints_no_terminal(place: Place) -> None:
    """Whatever stands in the tables is shown escaped, in tables and in JSON."""
    evil = "\x1b]0;owned\x07\u202e\n\x9b2J"
    place.write("INSERT INTO ban VALUES ('sender', ?, ?, ?, 1, 0)", evil, evil, evil)
    place.write("INSERT INTO user_limit VALUES (?, 'messages', 3600000, 5, ?, ?, 1, 0)", evil, evil, evil)
    place.write("INSERT INTO history VALUES (1, 1, 1, ?, ?, ?, ?, ?)", evil, evil, evil, evil, evil)
    for words in (("bans",), ("quota",), ("history",), ("dump",), ("bans", "--json"), ("history", "--json")):
        output = place.run(*words).stdout
        assert output.replace("\n", "").isprintable()
        assert output.isascii()
        assert "x1b" in output or "u001b" in output


def test_remarks_when_it_would_have_no_effect(tmp_path: Path) -> None:
    """A ban that no check asks for is set, and said to have no effect."""
    without = CONFIG[: CONFIG.index("[[check]]")]
    place = Place(tmp_path, without + "[[check]]\nuse = 'bans'\nmode = 'shadow'\n")
    assert "in mode shadow" in place.run("ban", "user", "alice").output
    assert "has no check" in place.run("allow", "client", "::1").output
    assert "no effect" in place.run("quota", "set", "alice", "5 messages per 1h").output
    assert "no effect" in place.run("grant", "alice", "5", "messages", "--for", "1h").output


# --- dump and load ----------------------------------------------------------------------------------------------------


def fill(place: Place) -> None:
    """One row or more in every steering table."""
    for words in (
        ["ban", "user", "alice", "--for", "24h", "--reason", "phished"],
        ["ban", "sender", "<>"],
        ["allow", "client", "2001:db8::/32", "--until", "tomorrow"],
        [
            "quota",
            "set",
            "alice",
            "500 recipients per 1h",
            "1500B per 1d",
            "unlimited messages per 7d",
            "--force",
        ],
        ["grant", "alice", "5000", "recipients", "--for", "3h", "--reason", "invitation"],
        ["check", "shadow", "quota", "--for", "2h"],
        ["pause", "--for", "1h"],
        ["sender", "allow", "alice", "sales@example.org", "@lists.example.org", "<>", "--for", "2h"],
        ["greylist", "allow", "domain", "example.net", "--reason", "pool"],
    ):
        result = place.run(*words)
        assert result.exit_code == 0, result.output
    place.write(
        "INSERT INTO suspension VALUES ('bob@example.org', 'hijacked', '9 networks', ?, 1, '7F3K2', 'policyd', 1, 0)",
        '{"values":["198.51.100.0/24"],"decisions":[7]}',
    )
    place.write("INSERT INTO milestone VALUES ('learned', 'from logs', 'root', 1, 0)")


def test_what_is_dumped_can_be_loaded(place: Place, tmp_path: Path) -> None:
    """Into the same database it changes nothing; into an empty one it makes the same rows."""
    fill(place)
    dumped = place.run("dump").output
    assert {json.loads(line)["table"] for line in dumped.splitlines()} == set(TABLES)
    before = place.everything()
    result = place.run("load", "-", stdin=dumped)
    assert (result.exit_code, result.output) == (0, "15 unchanged\n")
    assert place.everything() == before
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    (tmp_path / "dumped").write_text(dumped, encoding="utf-8")
    assert other.run("load", str(tmp_path / "dumped"), "--reason", "moved").output == "15 added\n"
    for table in TABLES:
        mine, theirs = (
            sorted(row[:-2] for row in where.ask(f"SELECT * FROM {table}")) for where in (place, other)
        )
        assert theirs == mine
        ends, other_ends = (sorted(where.ask(f"SELECT expires_at FROM {table}")) for where in (place, other))
        for (mine_at,), (theirs_at,) in zip(ends, other_ends, strict=True):
            assert abs(mine_at - theirs_at) < 1000
    assert {row["reason"] for row in other.json("history")} == {"moved"}


def test_an_edited_dump(place: Place) -> None:
    """Changed lines change, new ones are added; what is left out stays, and goes with --replace."""
    place.run("ban", "sender", "a@example.net")
    place.run("ban", "sender", "b@example.net")
    lines = '{"table": "ban", "kind": "sender", "value": "A@example.net", "reason": "spam"}\n\n'
    lines += '{"table": "ban", "kind": "domain", "value": "c.example.net"}\n'
    assert place.run("load", "-", stdin=lines).output == "1 added, 1 changed\n"
    assert len(place.json("bans")) == 3
    assert "1 removed" in place.run("load", "--replace", "--dry-run", "-", stdin=lines).output
    assert len(place.json("bans")) == 3
    assert place.run("load", "--replace", "-", stdin=lines).exit_code == 0
    assert [(row["value"], row["reason"]) for row in place.json("bans")] == [
        ("c.example.net", ""),
        ("a@example.net", "spam"),
    ]


def test_an_empty_file_takes_nothing_back_unless_forced(place: Place) -> None:
    """A pipe that failed before it must not lift every ban; an empty file without --replace, or a dry run, does nothing."""
    place.run("ban", "sender", "a@example.net")
    for nothing in ("", "\n \n"):
        ran = place.run("load", "--replace", "-", stdin=nothing)
        assert ran.exit_code == 1
        assert "stdin is empty, and --replace would take back all that is in force; add --force" in ran.output
        assert place.run("load", "-", stdin=nothing).output == "nothing to do\n"
        assert "1 removed" in place.run("load", "--replace", "--dry-run", "-", stdin=nothing).output
        assert len(place.json("bans")) == 1
    assert place.run("load", "--replace", "--force", "-", stdin="").output == "1 removed\n"
    assert place.json("bans") == []


def test_grants_of_bytes_are_shown_as_sizes(place: Place) -> None:
    """To people; programs get the number of bytes."""
    granted = place.run("grant", "alice", "500MB", "--for", "1h", "--force").output
    assert "500MB more in every window" in granted
    listed = place.run("grant", "list").output
    assert "500MB" in listed
    assert "500000000" not in granted + listed
    assert place.json("grant", "list")[0]["amount"] == 500_000_000
    assert "grant 1 of 500MB is taken back" in place.run("grant", "rm", "alice").output


def test_grants_of_another_database(place: Place) -> None:
    """A number that belongs to somebody else is refused; without a number it is a new grant."""
    place.run("grant", "alice", "5", "messages", "--for", "1h")
    line = {"table": "user_grant", "id": 1, "user": "bob", "unit": "messages", "amount": 7}
    result = place.run("load", "-", stdin=json.dumps(line))
    assert result.exit_code == 1
    assert "leave out id" in result.output
    del line["id"]
    assert place.run("load", "-", stdin=f"{json.dumps(line)}\n" * 2).output == "2 added\n"
    assert [(row["id"], row["user"]) for row in place.json("grant")] == [
        (1, ALICE),
        (2, "bob@example.org"),
        (3, "bob@example.org"),
    ]


WRONG = {
    "{": "is no JSON object",
    "[1]": "is no JSON object",
    "[" * 100_000: "is no JSON object",
    '{"table": ["ban"]}': "'table' must be one of",
    '{"table": "counter"}': "'table' must be one of",
    '{"table": "ban", "kind": "user"}': "has no 'value'",
    '{"table": "ban", "kind": "recipient", "value": "a@b"}': "'kind' must be one of user, sender",
    '{"table": "ban", "kind": ["user"], "value": "a@b"}': "'kind' must be one of",
    '{"table": "ban", "kind": "sender", "value": 5}': "'value' must be a printable text",
    '{"table": "ban", "kind": "sender", "value": "a\\u001b@b"}': "'value' must be a printable text",
    '{"table": "ban", "kind": "sender", "value": "\\ud800@b"}': "'value' must be a printable text",
    '{"table": "ban", "kind": "client", "value": "1.2.3.4/8"}': "host bits",
    '{"table": "ban", "kind": "client", "value": "192.0.2.1"}': "never list",
    '{"table": "ban", "kind": "user", "value": " "}': "is no login",
    '{"table": "ban", "kind": "user", "value": "a@b", "until": null}': "has a key 'until'",
    '{"table": "ban", "kind": "user", "value": "a@b", "expires": "tomorrow"}': "'expires' must be a time",
    '{"table": "ban", "kind": "user", "value": "a@b", "expires": 5}': "'expires' must be a time",
    '{"table": "ban", "kind": "user", "value": "a@b", "expires": "2026-12-01"}': "needs a time zone",
    '{"table": "user_limit", "user": "a@b", "limit": "5"}': "is no limit",
    '{"table": "user_grant", "user": "a@b", "unit": "messages", "amount": -1}': "'amount' must be a whole number",
    '{"table": "user_grant", "user": "a@b", "unit": "messages", "amount": true}': "'amount' must be a whole number",
    '{"table": "user_grant", "user": "a@b", "unit": "mails", "amount": 1}': "'unit' must be one of",
    '{"table": "check_mode", "name": "qouta", "mode": "off"}': "there is no check 'qouta'",
    '{"table": "check_mode", "name": "quota", "mode": "on"}': "'mode' must be one of",
    # A pause has everything in shadow; nothing has it off.
    '{"table": "check_mode", "name": "*", "mode": "off"}': "'mode' must be one of shadow",
    '{"table": "sender_right", "user": "a@b", "sender": "b"}': "is no sender; write alice@example.org",
    '{"table": "sender_right", "user": " ", "sender": "@b"}': "is no login",
    '{"table": "sender_right", "user": "a@b"}': "has no 'sender'",
    '{"table": "greylist_allow", "kind": "user", "value": "a@b"}': "'kind' must be one of client, sender",
    '{"table": "greylist_allow", "kind": "client", "value": "1.2.3.4/8"}': "host bits",
    '{"table": "ban", "kind": "sender", "value": "GOOD@example.net"}': "the same as line 1",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_wrong_line_and_nothing_is_loaded(place: Place, line: str) -> None:
    """Each problem names its line; the good lines around it change nothing."""
    good = '{"table": "ban", "kind": "sender", "value": "good@example.net"}'
    before = place.everything()
    result = place.run("load", "-", stdin=f"{good}\n{line}\n")
    assert result.exit_code == 1
    assert "policyctl: stdin: line 2: " in result.output
    assert WRONG[line] in result.output
    assert result.output.endswith("policyctl: stdin: nothing was changed\n")
    assert place.everything() == before


def test_all_problems_of_a_file(place: Place) -> None:
    """Every wrong line is named at once, up to a number that can be read."""
    result = place.run("load", "-", stdin="x\n" * 30)
    assert "line 1:" in result.output
    assert "line 20:" in result.output
    assert "and 10 more problems" in result.output


def test_a_file_that_is_not_there(place: Place) -> None:
    """It is named, in one line."""
    result = place.run("load", "/nonexistent/file")
    assert (result.exit_code, result.output) == (
        1,
        "policyctl: /nonexistent/file: No such file or directory\n",
    )


def test_what_has_ended_is_not_loaded(place: Place) -> None:
    """A line whose end is past is left out, and counted."""
    line = '{"table": "ban", "kind": "sender", "value": "a@example.net", "expires": "2020-01-01T00:00:00Z"}'
    assert place.run("load", "-", stdin=line).output == "1 expired\n"
    assert place.json("bans") == []


@pytest.mark.parametrize(
    ("banned", "asked", "says"),
    [
        (["client", "203.0.113.0/24"], ["client", "203.0.113.7"], "policyctl unban client 203.0.113.0/24"),
        (["client", "203.0.113.0/24"], ["client", "203.0.113.0/26"], "policyctl unban client 203.0.113.0/24"),
        (["client", "example.net"], ["client", "mx.example.net"], "policyctl unban client example.net"),
        (["domain", "example.net"], ["domain", "sub.example.net"], "policyctl unban domain example.net"),
        (["domain", ".example.net"], ["sender", "x@a.example.net"], "policyctl unban domain .example.net"),
    ],
)
def test_what_holds_is_named_when_something_narrower_is_lifted(
    place: Place, banned: list[str], asked: list[str], says: str
) -> None:
    """Nobody is left with "is not banned" of a client that is refused."""
    assert place.ran("ban", *banned).exit_code == 0
    for words in (["unban"], ["ban", "show"]):
        result = place.ran(*words, *asked)
        assert (result.exit_code, result.stdout) == (3, "")
        assert says in result.stderr
    assert len(place.ask("SELECT * FROM ban")) == 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("alcie", ALICE),
        ("alice@example.net", ALICE),
        ("alice@exmaple.org", ALICE),
        ("alic@exmaple.org", ALICE),
        ("bob", ""),
        ("zzz@example.org", ""),
        ("postmaster", ""),
        ("carol@example.org", ""),
    ],
)
def test_a_login_is_proposed_for_a_mistyped_one_only(place: Place, typed: str, meant: str) -> None:
    """Having the domain in common is no likeness: a wrong proposal at night bans somebody else."""
    for words in (["ban", "user", typed], ["why", typed], ["quota", "show", typed]):
        if typed == "postmaster" and words[0] == "ban":
            continue
        result = place.ran(*words)
        assert result.exit_code == 3
        assert (f"did you mean {meant}?" in result.stderr) if meant else ("did you mean" not in result.stderr)


def test_a_limit_that_is_not_there_cannot_be_lifted(place: Place) -> None:
    """A mistyped window would leave the limit in force, and the admin sure that it is gone."""
    result = place.ran("quota", "set", "alice", "unlimited recipients per 2h")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "it has 20 recipients per 1h" in result.stderr
    assert place.ask("SELECT * FROM user_limit") == []
    assert place.ran("quota", "set", "alice", "unlimited recipients per 60m").exit_code == 0
    assert place.ran("quota", "set", "alice", "5 recipients per 2h").exit_code == 0
    assert place.ran("quota", "set", "alice", "unlimited recipients per 2h").exit_code == 0
    assert place.ran("quota", "set", "alice", "unlimited bytes per 1h", "--force").exit_code == 0
