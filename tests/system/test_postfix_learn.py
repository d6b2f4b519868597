"""policyctl learn and the log of a real Postfix: the counts are those of what was sent."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.accounts import digest
from tests.cli.place import Place
from tests.system.postfix import Postfix, queue_id, stock_master_cf

MAIN_CF = """
virtual_alias_maps = inline:{ {team@example.org = x@example.org y@example.org z@example.org} }
smtpd_sasl_auth_enable = yes
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
"""
CONFIG = """
[site]
domains = ["example.org"]
default_domain = "example.org"
[store]
url = "sqlite:///{path}"
[tiers]
default = "new"
learned = "regular"
[tier.new]
[tier.regular]
limits = ["4 recipients per 1h"]
[[check]]
use = "quota"
for = "submission"
count = "all"
"""


@pytest.fixture(scope="module", params=["yes", "no"], ids=["long queue ids", "short queue ids"])
def postfix(request: pytest.FixtureRequest) -> Iterator[Postfix]:
    main_cf = f"{MAIN_CF}enable_long_queue_ids = {request.param}\n"
    with Postfix(main_cf, stock_master_cf("submission", "submissions")) as postfix:
        yield postfix


def test_what_was_sent_is_what_is_learned(postfix: Postfix, tmp_path: Path) -> None:
    """Several logins over three services, an alias, a client that gives up, one that may not send, and a rotated log."""
    sent = []
    for service, login in (("smtp", "alice"), ("submission", "bob@example.org"), ("submissions", "Carol")):
        with postfix.connect(service, login) as client:
            sent.append(client.send("a@example.org", "one@remote.test", "two@remote.test"))
            sent.append(client.send("a@example.org", "team@example.org", "one@remote.test"))
            client.smtp.mail("given-up@example.org")
            client.smtp.rcpt("nobody@remote.test")
            client.smtp.rset()
    with postfix.connect() as stranger:
        assert "Relay access denied" in stranger.send("mallory@remote.test", "one@remote.test")
    postfix.delivered(map(queue_id, sent))
    older, newer = tmp_path / "mail.log.1", tmp_path / "mail.log"
    lines = postfix.log_file.read_bytes().splitlines(keepends=True)
    older.write_bytes(gzip.compress(b"".join(lines[: len(lines) // 2])))
    newer.write_bytes(b"".join(lines[len(lines) // 2 :]))
    for path in (older, newer):
        shutil.copystat(postfix.log_file, path)
    place = Place(tmp_path, CONFIG)
    told = place.json("learn", str(newer), str(older))
    users = ["alice@example.org", "bob@example.org", "carol@example.org"]
    assert (told["messages"], told["recipients"], told["accounts"]) == (6, 12, 3)
    assert (told["unfinished"], told["not_understood"]) == (3, 0)
    assert place.ask("SELECT user, tier FROM account") == [(user, "regular") for user in users]
    known = {digest(each) for each in ("one@remote.test", "two@remote.test", "team@example.org")}
    for user in users:
        assert {
            row for (row,) in place.ask("SELECT recipient FROM correspondent WHERE user = ?", user)
        } == known
    assert told["would"] == []
