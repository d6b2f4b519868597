"""`policyctl greylist`: what is remembered is shown and forgotten, and who is not delayed is steering data."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.greylisting import CLIENT, PASSED, WAITING
from policyd.store import clock
from policyd.units import DAY, HOUR, MINUTE
from tests.cli.place import CONFIG, Place

TRIPLETS = [
    (WAITING, "192.0.2.0/24 alice@example.net bob@example.org", 10, 0),
    (PASSED, "192.0.2.0/24 carol@example.net bob@example.org", 200, 3),
    (PASSED, "198.51.100.0/24 list-#@lists.example.com dave@example.org", 400, 7),
    (PASSED, "@pool.example <> dave@example.org", 500, 1),
    (WAITING, "2001:db8::/64 \\x1b[31m@example.net bob@example.org", 5, 0),
]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, CONFIG + '\n[[check]]\nuse = "greylist"\nfor = "mx"\n')
    now = clock.wall()
    for kind, key, minutes, hits in TRIPLETS:
        at = now - minutes * MINUTE
        place.write("INSERT INTO memory VALUES (?, ?, ?, ?, ?, ?)", kind, key, at - HOUR, at, hits, now + DAY)
    for key in ("expired x@y z@example.org", "192.0.2.0/24 carol@example.net bob@example.org"):
        place.write("INSERT INTO memory VALUES (?, ?, 1, 1, 0, 2)", WAITING, key)
    for key, hits in (("192.0.2.0/24", 5), ("@pool.example", 1)):
        place.write("INSERT INTO memory VALUES (?, ?, ?, ?, ?, ?)", CLIENT, key, now, now, hits, now + DAY)
    return place


def shown(place: Place, *words: str) -> list[tuple[str, str, str, str]]:
    return [
        (row["client"], row["sender"], row["recipient"], row["state"])
        for row in place.json("greylist", "show", *words)
    ]


def test_triplets_are_shown(place: Place) -> None:
    """The newest last; one that passed once, not as waiting too; what has expired is not shown."""
    rows = shown(place)
    assert [row[3] for row in rows] == ["passed", "passed", "passed", "waiting", "waiting"]
    assert rows[2] == ("192.0.2.0/24", "carol@example.net", "bob@example.org", "passed")
    assert len({row[:3] for row in rows}) == 5
    assert place.json("greylist") == place.json("greylist", "list") == place.json("greylist", "show")
    assert len(shown(place, "-n", "2")) == 2
    assert shown(place, "-n", "2") == rows[-2:]
    table = place.run("greylist").output
    assert "alice@example.net" in table
    assert "\x1b" not in table


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--client", "192.0.2.77"], 2),
        (["--client", "192.0.2.0/24", "--passed"], 1),
        (["--client", "2001:db8::1234"], 1),
        (["--client", "@pool.example"], 1),
        (["--sender", "Carol+x@example.net"], 1),
        (["--sender", "@example.net"], 3),
        (["--sender", "@example.com"], 0),
        (["--sender", "list-99@lists.example.com"], 1),
        (["--sender", "<>"], 1),
        (["--recipient", "bob@example.org", "--waiting"], 2),
        (["--recipient", "dave@example.org"], 2),
        (["--recipient", "@example.org"], 5),
        (["--client", "203.0.113.1"], 0),
    ],
)
def test_filters(place: Place, words: list[str], found: int) -> None:
    """By client, sender as it is compared, recipient, and state."""
    rows = shown(place, *words)
    if "--waiting" in words:
        assert {row[3] for row in rows} == {"waiting"}
    assert len(rows) == found


def test_clients_are_shown(place: Place) -> None:
    """Which are not delayed any more is by the configuration's auto_allow."""
    rows = {row["client"]: (row["successes"], row["delayed"]) for row in place.json("greylist", "clients")}
    assert rows == {"192.0.2.0/24": (5, False), "@pool.example": (1, True)}
    assert "no more" in place.run("greylist", "clients").output


@pytest.mark.parametrize(
    ("kind", "value", "client", "spared"),
    [
        ("client", "192.0.0.0/16", "192.0.2.0/24", True),
        ("client", "192.0.2.7", "192.0.2.0/24", False),
        ("client", "2001:db8::/32", "192.0.2.0/24", False),
        ("client", "mail.example.net", "192.0.2.0/24", False),
        ("domain", "example", "@pool.example", True),
        ("domain", ".pool.example", "@pool.example", False),
    ],
)
def test_clients_that_are_allowed_by_hand_are_not_called_delayed(
    place: Place, kind: str, value: str, client: str, spared: bool
) -> None:
    """All of the network, or of the pool; whom only a part of it spares is delayed in the rest."""
    assert place.run("greylist", "allow", kind, value).exit_code == 0
    (line,) = (each for each in place.run("greylist", "clients").output.splitlines() if client in each)
    assert ("no, by hand" in line) == spared


def remembered(place: Place) -> set[tuple[str, str]]:
    return set(place.ask("SELECT kind, key FROM memory"))


def test_a_client_is_forgotten(place: Place) -> None:
    """Its triplets and what it has proved; the daemon is told by the change table."""
    before = remembered(place)
    changes = place.ask("SELECT count(*) FROM change WHERE tbl = 'memory'")[0][0]
    dry = place.run("greylist", "forget", "--client", "192.0.2.9", "--dry-run")
    assert dry.output == "dry run, nothing is changed: forgotten: 2 triplets, 1 client\n"
    assert remembered(place) == before
    result = place.run("greylist", "forget", "--client", "192.0.2.9", "--reason", "sends spam")
    assert (result.exit_code, result.output) == (0, "forgotten: 2 triplets, 1 client\n")
    assert {key for _, key in before - remembered(place)} == {
        "192.0.2.0/24",
        "192.0.2.0/24 alice@example.net bob@example.org",
        "192.0.2.0/24 carol@example.net bob@example.org",
    }
    assert place.ask("SELECT count(*) FROM change WHERE tbl = 'memory'")[0][0] > changes
    row = place.json("history")[0]
    assert (row["action"], row["subject"], row["reason"]) == ("greylist forget", "192.0.2.0/24", "sends spam")


def test_a_triplet_is_forgotten(place: Place) -> None:
    """What its client has proved stays."""
    result = place.run(
        "greylist", "forget", "--sender", "carol@example.net", "--recipient", "bob@example.org"
    )
    assert result.output == "forgotten: 1 triplet\n"
    assert (CLIENT, "192.0.2.0/24") in remembered(place)
    assert shown(place, "--sender", "carol@example.net") == []


def test_everything_is_forgotten(place: Place) -> None:
    """Only when it is said."""
    assert place.run("greylist", "forget").exit_code == 2
    assert place.run("greylist", "forget", "--all", "--sender", "a@example.net").exit_code == 2
    assert place.run("greylist", "forget", "--all").exit_code == 0
    assert remembered(place) == set()
    assert place.run("greylist").output == "no such triplet is known\n"
    result = place.run("greylist", "forget", "--all")
    assert (result.exit_code, result.output.count("\n")) == (3, 1)


def test_many_are_forgotten_in_short_transactions(place: Place) -> None:
    """The daemon writes in between; the history has one row."""
    place.write(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
        "INSERT INTO memory SELECT 'greylist', '203.0.113.0/24 u' || i || '@x.example b@example.org', 1, 1, 0, 9e15 FROM n"
    )
    assert (
        place.run("greylist", "forget", "--client", "203.0.113.5").output
        == "forgotten: 5000 triplets, 0 clients\n"
    )
    assert len(place.ask("SELECT * FROM history WHERE action = 'greylist forget'")) == 1
    assert len(place.ask("SELECT * FROM change WHERE tbl = 'memory'")) >= 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "--client", "mail.example.net"], "is no IP address"),
        (["show", "--waiting", "--passed"], "exclude each other"),
        (["show", "--client", "@"], "is no domain"),
        (["forget"], "say what to forget"),
    ],
)
def test_wrong_usage_is_one_line(place: Place, words: list[str], told: str) -> None:
    """With exit code 2."""
    result = place.run("greylist", *words)
    assert result.exit_code == 2
    assert told in result.output
    assert result.output.count("\n") == 1


def test_who_is_not_delayed(place: Place) -> None:
    """Set, listed and taken back like an allow; the allow of all checks is another."""
    result = place.run("greylist", "allow", "client", "192.0.2.7", "--for", "7d", "--reason", "pool")
    assert result.exit_code == 0
    assert result.output.startswith("spared greylisting client 192.0.2.7, until ")
    assert place.run("greylist", "add", "recipient", "support@example.org").exit_code == 0
    assert [(row["kind"], row["value"]) for row in place.json("greylist", "allows")] == [
        ("client", "192.0.2.7"),
        ("recipient", "support@example.org"),
    ]
    assert place.json("allows") == []
    assert [row["value"] for row in place.json("greylist", "allows", "recipient")] == ["support@example.org"]
    result = place.run("greylist", "unallow", "client", "192.0.2.7")
    assert result.output == "no longer spared greylisting: client 192.0.2.7\n"
    assert place.run("greylist", "rm", "client", "192.0.2.7").exit_code == 3
    actions = [row["action"] for row in place.json("history")]
    assert actions[:3] == ["greylist unallow client", "greylist allow recipient", "greylist allow client"]


def test_without_the_check_it_is_told(tmp_path: Path) -> None:
    """An entry means nothing where no check asks for it."""
    result = Place(tmp_path).run("greylist", "allow", "domain", "example.net")
    assert result.exit_code == 0
    assert "has no check 'use = \"greylist\"'" in result.output
