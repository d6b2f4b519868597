"""docs/guide.md, typed as a new user would: each command in its order, on a real Postfix, and what it promises."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import ROOT, Policyd
from tests.system.postfix import SOCKET, Postfix, queue_id, stock_master_cf

#: As the package installs it, with everything but bans in shadow; without loopback, where the strangers of a test come from.
POLICY = """
[site]
domains = []
networks = []
default_domain = ""
[server]
listen = ["unix:{socket}"]
[tiers]
default = "regular"
[tier.regular]
limits = ["200 recipients per 1h", "600 recipients per 1d"]
[[check]]
use = "allow"
[[check]]
use = "bans"
[[check]]
use = "quota"
for = "submission"
mode = "shadow"
[[check]]
use = "dnsbl"
for = "mx"
mode = "shadow"
sites = ["bl.invalid"]
[[check]]
use = "spf"
for = "mx"
mode = "shadow"
[dns]
nameservers = ["127.0.0.1:1"]
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Postfix, Policyd]]:
    postfix = Postfix("myorigin = example.org\n", stock_master_cf("submission", "submissions"))
    with postfix, Policyd(tmp_path, POLICY.format(socket=postfix.queue / SOCKET)) as policyd:
        yield postfix, policyd


def steps() -> list[list[str]]:
    """The commands of each section that are policyctl's."""
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        found.append([line for line in lines if line.startswith("policyctl ")])
    return found


def test_the_guide_leads_from_an_empty_server_to_a_protected_one(site: tuple[Postfix, Policyd]) -> None:
    """Asked on 25 and 587, a test account held to two messages an hour, its third refused with a reference that why explains."""
    postfix, policyd = site

    def typed(line: str, *, code: int = 0) -> str:
        words = shlex.split(line)[1:]
        if words[0] in ("postfix", "doctor"):
            words += ["--postfix-config", str(postfix.config)]
        done: subprocess.CompletedProcess[str] = policyd.try_ctl(*words)
        assert done.returncode == code, (line, done)
        return done.stdout

    def send(service: str = "submission") -> str:
        with postfix.connect(service, "test" if service != "smtp" else "") as client:
            sender = "test@example.org" if service != "smtp" else "stranger@remote.test"
            recipient = "bob@remote.test" if service != "smtp" else "test@example.org"
            return client.send(sender, recipient)

    _, enable, see, limit, night, hold, publish = (iter(lines) for lines in steps()[:7])
    assert "+policyd_mx = " in typed(next(enable))
    typed(next(enable))
    policyd.wait_told("reloaded")
    assert 'default_domain = "example.org"' in policyd.config.read_text()
    # On a machine of the tests policyd runs as root, without its unit, with nobody to keep the clock, and no nameserver.
    said = typed(next(enable), code=2)
    head = said.splitlines()[0].partition(": ")[2].partition(": ")[2]
    assert set(head.split(", ")) <= {"runs-as-root", "resolver-silent", "clock-unsynchronised"}, said

    queue_id(send())
    queue_id(send("smtp"))
    status = typed(next(see))
    for direction, stage in (("submission", "RCPT"), ("submission", "END-OF-MESSAGE"), ("mx", "RCPT")):
        assert re.search(rf"^{direction} +{stage} ", status, re.MULTILINE), status
    assert "test@example.org" in typed(next(see))

    typed(next(limit))
    typed(next(limit))
    queue_id(send())
    queue_id(send())
    refused = send()
    assert "Sending limit reached; 2 of 2 messages per hour, room again at " in refused
    reference = refused.rpartition("ref ")[2]
    why = typed(next(limit))
    assert why.startswith("test@example.org cannot send now")
    assert f"ref {reference}" in policyd.ctl("explain", reference)
    assert re.search(r"messages.* 2 ", typed(next(limit)))
    typed(next(limit))
    queue_id(send())
    for line in limit:
        typed(line)
    queue_id(send())

    typed(next(night))
    assert send().startswith("550 5.7.1 ")
    typed(next(night))
    queue_id(send())

    for line in hold:
        typed(line)
    for line in publish:
        assert "Acceptable use of mail at example.org" in typed(line)
    typed("policyctl postfix disable --yes")
    assert "policyd" not in (postfix.config / "main.cf").read_text().replace(str(postfix.directory), "")
