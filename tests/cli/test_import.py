"""policyctl import: limits and counts of policyd-rate-limit and iRedAPD, as they stand there, mean the same here."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from policyd.checks import options_of
from policyd.config import Config, load
from policyd.units import DAY, HOUR, MINUTE, Limit
from tests.cli.place import Place

YAML = """
limits:
  - [10, 60]
  - [150, 86400]
limits_by_id:
  alice@example.org:
    - [1000, 86400]
  bob: []
  192.0.2.7:
    - [5, 60]
sql_limits_by_id: "SELECT 1"
limit_by_sasl: True
limit_by_sender: True
limit_by_ip: False
fail_action: "defer_if_permit Rate limit reached, retry later"
count_mode: 1
"""
TSV = """\
id\taccount\tkind\tpriority\tperiod\tmsg_size\tmax_msgs\tmax_quota\tmax_rcpts
1\t@.\toutbound\t0\t3600\t-1\t100\t50000000\t-1
2\t@example.net\toutbound\t60\t86400\t10485760\t500\t-1\t-1
3\talice@example.org\toutbound\t100\t3600\t-1\t2000\t0\t50
4\t@.\tinbound\t0\t60\t-1\t30\t-1\t-1
5\tbob@example.org\toutbound\t100\t3600\t-1\t0\t-1\t-1
6\t192.168.1.1\toutbound\t80\t3600\t-1\t10\t-1\t-1
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def loaded(place: Place, text: str) -> Config:
    """The printed part, in a file of its own: policyd takes it."""
    path = place.config.with_name("imported.toml")
    path.write_text(text)
    return load(path, options_of)


def own(place: Place) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for user, unit, window, amount in place.ask("SELECT user, unit, window, amount FROM user_limit"):
        found.setdefault(user, set()).add(f"{amount} {unit}/{window // 1000}")
    return found


def imported(place: Place, *words: str) -> Any:
    ran = place.ran("import", *words, "--json")
    assert ran.exit_code == 0, ran.stderr
    import json

    return json.loads(ran.stdout)


def test_limits_of_policyd_rate_limit_mean_the_same(place: Place, tmp_path: Path) -> None:
    """All accounts in a tier with its limits, those with limits of their own with these and no others; what is left is said."""
    (tmp_path / "policyd-rate-limit.yaml").write_text(YAML)
    found = imported(place, "rate-limit", str(tmp_path / "policyd-rate-limit.yaml"), "--reason", "moved")
    config = loaded(place, found["toml"])
    assert config.tiers.limits_of("carol@example.org") == (
        Limit(10, "recipients", MINUTE),
        Limit(150, "recipients", DAY),
    )
    assert [(check.use, check.name, check.mode) for check in config.checks] == [
        ("quota", "quota", "shadow"),
        ("quota", "by-sender", "shadow"),
    ]
    assert (config.checks[0].options.count, config.checks[0].options.on_breach) == ("all", "defer")
    assert own(place) == {
        "alice@example.org": {"1000 recipients/86400", "-1 recipients/60"},
        "bob@example.org": {"-1 recipients/60", "-1 recipients/86400"},
    }
    assert [note.partition(":")[0] for note in found["notes"]] == ["limits_by_id", "sql_limits_by_id"]
    assert place.json("history")[0]["reason"] == "moved"


def test_accounts_begin_with_what_they_used_there_and_only_once(place: Place, tmp_path: Path) -> None:
    """Nobody gets a second quota by the move; a second import adds nothing."""
    (tmp_path / "policyd-rate-limit.yaml").write_text(YAML)
    database = tmp_path / "db.sqlite3"
    now = int(time.time())
    connection = sqlite3.connect(database)
    connection.execute(
        "CREATE TABLE mail_count (id varchar(40) NOT NULL, date bigint NOT NULL, recipient_count int DEFAULT 1, "
        "instance varchar(40) NOT NULL, protocol_state varchar(10) NOT NULL)"
    )
    rows = [
        ("carol@example.org", now - 3600, 40),
        ("carol@example.org", now - 7200, 2),
        ("carol@example.org", now - 90000, 500),
        ("dave", now - 10, 7),
        ("192.0.2.7", now - 10, 9),
    ]
    connection.executemany("INSERT INTO mail_count VALUES (?, ?, ?, '1a', 'DATA')", rows)
    connection.commit()
    connection.close()
    arguments = ("rate-limit", str(tmp_path / "policyd-rate-limit.yaml"), "--database", str(database))
    assert imported(place, *arguments, "--dry-run")["accounts_begun"] == 2
    assert own(place) == {}
    assert imported(place, *arguments)["accounts_begun"] == 2
    assert imported(place, *arguments)["accounts_begun"] == 0
    place.config.write_text(
        place.config.read_text().replace(
            '["20 recipients per 1h"]', '["150 recipients per 1d", "10 recipients per 1m"]'
        )
    )
    limits = {
        limit["window_ms"]: limit["used"]
        for limit in place.json("quota", "show", "carol@example.org")["limits"]
    }
    assert limits == {DAY: 42, MINUTE: 0}
    limits = {
        limit["window_ms"]: limit["used"]
        for limit in place.json("quota", "show", "dave@example.org")["limits"]
    }
    assert limits == {DAY: 7, MINUTE: 7}


@pytest.mark.parametrize("form", ["tsv", "csv", "sqlite"])
def test_the_throttle_table_of_iredapd_means_the_same(place: Place, tmp_path: Path, form: str) -> None:
    """Everybody, a domain, an account, unlimited and inherited; in each form in which its SQL server prints it."""
    path = tmp_path / f"throttle.{form}"
    if form == "sqlite":
        head, *rows = (line.split("\t") for line in TSV.splitlines())
        connection = sqlite3.connect(path)
        connection.execute(f"CREATE TABLE throttle ({', '.join(head)})")
        connection.executemany(f"INSERT INTO throttle VALUES ({', '.join('?' for _ in head)})", rows)
        connection.commit()
        connection.close()
    else:
        path.write_text(TSV if form == "tsv" else TSV.replace("\t", ","))
    found = imported(place, "iredapd", str(path))
    config = loaded(place, found["toml"])
    everybody = (Limit(100, "recipients", HOUR), Limit(50_000_000, "bytes", HOUR))
    assert config.tiers.limits_of("carol@example.org") == everybody
    assert config.tiers.limits_of("x@example.net") == (Limit(500, "recipients", DAY), everybody[1])
    assert own(place) == {
        "alice@example.org": {"2000 recipients/3600", "-1 bytes/3600"},
        "bob@example.org": {"-1 recipients/3600"},
    }
    notes = "\n".join(found["notes"])
    for word in ("message_size_limit = 10485760", "smtpd_recipient_limit = 50", "inbound", "192.168.1.1"):
        assert word in notes
    assert config.checks[0].options.on_breach == "reject"


@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        ("rate-limit", "limits: [[1]]", "no pair"),
        ("rate-limit", "limits: [[1, 0]]", "no pair"),
        ("rate-limit", "- a", "no configuration"),
        ("rate-limit", "a: [", "policyd-rate-limit.yaml"),
        ("rate-limit", "limits: []\nlimits_by_id: 7", "no mapping"),
        ("iredapd", "", "no table"),
        ("iredapd", "hello\nworld\n", "column is missing"),
        ("iredapd", TSV.replace("\t3600\t", "\tsoon\t"), "row 2"),
        ("iredapd", "SQLite format 3\0nonsense", "throttle"),
    ],
)
def test_what_is_no_such_file_is_one_line(
    place: Place, tmp_path: Path, source: str, text: str, said: str
) -> None:
    """A wrong file changes nothing, and the error says what to give instead."""
    (tmp_path / "file").write_bytes(text.encode())
    ran = place.ran("import", source, str(tmp_path / "file"))
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1
    assert said in ran.stderr
    assert own(place) == {}
    assert place.ran("import", source, str(tmp_path / "none")).exit_code == 1
