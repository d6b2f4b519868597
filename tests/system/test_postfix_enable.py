"""policyctl postfix enable and disable on a real Postfix: mail is asked about, and everything can be taken back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, queue_id, stock_master_cf
from tests.system.waiting import wait_for

POLICY = """
[site]                      # who we are
domains = ["example.org"]   # ours
networks = ["127.0.0.0/8"]
[server]
listen = ["unix:{socket}"]
[tiers]
default = "regular"
[tier.regular]
limits = ["2 messages per 1h"]
[[check]]
use = "bans"
[[check]]
use = "quota"
for = "submission"
"""
FILES = ("main.cf", "master.cf")
#: A list in an order of the admin's own, a comment within it, and a filter's listener.
MAIN_CF = """
smtpd_recipient_restrictions = reject_non_fqdn_recipient,
    # our own first
    permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination
virtual_mailbox_domains = texthash:{directory}/domains, regexp:{directory}/patterns
"""
FILTER = "10025 inet n - y - - smtpd\n  -o content_filter=\n  -o mynetworks=127.0.0.0/8\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postfix, Policyd]]:
    postfix = Postfix("", stock_master_cf("submission", "submissions") + FILTER)
    # Where Postfix's processes may read; pytest's own directories are root's.
    (postfix.directory / "domains").write_text("# ours\nexample.net anything\n")
    (postfix.directory / "patterns").write_text("/^never$/ x\n")
    with (postfix.config / "main.cf").open("a") as main_cf:
        main_cf.write(MAIN_CF.format(directory=postfix.directory))
    directory = tmp_path_factory.mktemp("enable")
    with postfix, Policyd(directory, POLICY.format(socket=postfix.queue / SOCKET)) as policyd:
        yield postfix, policyd


def texts(postfix: Postfix) -> dict[str, bytes]:
    return {name: (postfix.config / name).read_bytes() for name in FILES}


def ctl(pair: tuple[Postfix, Policyd], *words: str, code: int = 0) -> str:
    postfix, policyd = pair
    return policyd.ctl("postfix", *words, "--postfix-config", str(postfix.config), code=code)


def test_it_is_asked_on_every_port_once_and_taken_back_to_the_last_octet(
    pair: tuple[Postfix, Policyd],
) -> None:
    """From a Postfix that asks nobody to one that limits 587 and 465, and back; twice does nothing more than once."""
    postfix, policyd = pair
    before, toml = texts(postfix), policyd.config.read_text()
    shown = ctl(pair, "show")
    assert texts(postfix) == before, "show changes nothing"
    difference = ctl(pair, "enable", "--dry-run")
    assert "+policyd_mx = check_policy_service { unix:policyd/policy.sock, timeout=10s" in difference
    assert (texts(postfix), policyd.config.read_text()) == (before, toml), "a dry run changes nothing"
    told = policyd.try_ctl("postfix", "enable", "--yes", "--postfix-config", str(postfix.config))
    assert told.returncode == 0, told
    assert "Postfix has taken it" in told.stdout
    assert "/patterns cannot be listed" in told.stderr
    after = texts(postfix)
    assert ctl(pair, "enable", "--yes").count("nothing to change") == 1
    assert texts(postfix) == after
    assert "nothing to change" in ctl(pair, "show")
    assert postfix.admin("postconf", "-h", "smtpd_recipient_restrictions").strip() == (
        "reject_non_fqdn_recipient, $policyd_mx, permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"
    )
    meaning = postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")
    site = policyd.config.read_text()
    assert '# ours\nnetworks = ["127.0.0.0/8"]' in site
    assert 'domains = ["example.org", "example.net"]' in site
    policyd.wait_told("reloaded")
    for _ in range(2):
        with postfix.connect("submission", "alice") as client:
            queue_id(client.send("alice@example.org", "bob@remote.test", "carol@remote.test"))
    for service in ("submission", "submissions"):
        with postfix.connect(service, "alice") as client:
            assert "Sending limit reached; 2 of 2 messages" in client.send(
                "alice@example.org", "bob@remote.test"
            )
    with postfix.connect("10025") as client:
        name = queue_id(client.send("alice@example.org", "bob@remote.test"))
    assert policyd.ctl_json("log", "--queue-id", name) == [], "what a filter gives back is not asked about"
    with postfix.connect("smtp") as client:
        name = queue_id(client.send("dave@remote.test", "alice@example.org"))
    assert [row["stage"] for row in policyd.ctl_json("log", "--queue-id", name)] == ["END-OF-MESSAGE"]
    ctl(pair, "disable", "--yes")
    assert texts(postfix) == before
    assert sorted(path.name for path in postfix.config.iterdir() if "policyd" in path.name) == []
    with postfix.connect("submission", "alice") as client:
        queue_id(client.send("alice@example.org", "bob@remote.test"))
    assert (
        "nothing was enabled"
        in policyd.try_ctl("postfix", "disable", "--yes", "--postfix-config", str(postfix.config)).stderr
    )
    assert [line for line in postfix.complaints() if "policy" in line] == []
    postfix.admin("sh", "-eu", "-c", "\n".join(shown.splitlines()[:-1]))
    assert (postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")) == meaning, (
        "typed by hand it is the same"
    )
    for name, content in before.items():
        (postfix.config / name).write_bytes(content)


def test_edits_made_meanwhile_survive_and_policyd_is_gone(pair: tuple[Postfix, Policyd]) -> None:
    """Who changed main.cf after enable keeps that change; policyd is taken out of it."""
    postfix, _ = pair
    before = postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")
    ctl(pair, "enable", "--yes")
    postfix.admin("postconf", "-e", "message_size_limit = 12345678")
    postfix.admin("postconf", "-e", "smtpd_end_of_data_restrictions = $policyd_mx, permit")
    ctl(pair, "disable", "--yes")
    now = postfix.admin("postconf", "-n")
    assert "policyd_" not in now
    assert "message_size_limit = 12345678" in now
    assert postfix.admin("postconf", "-h", "smtpd_end_of_data_restrictions").strip() == "permit"
    postfix.admin("postconf", "-X", "message_size_limit")
    postfix.admin("postconf", "-X", "smtpd_end_of_data_restrictions")
    assert (postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")) == before


def test_edits_made_meanwhile_leave_no_list_that_names_policyd(pair: tuple[Postfix, Policyd]) -> None:
    """On a stock main.cf, where the lists are not set at all and defaults of Postfix name them: what enable set is gone again,
    but for a list that the admin has come to use elsewhere, and in that one policyd is not."""
    postfix, _ = pair
    whole = texts(postfix)
    postfix.admin("postconf", "-X", "smtpd_recipient_restrictions")
    before = postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")
    ctl(pair, "enable", "--yes")
    postfix.admin("postconf", "-e", "message_size_limit = 12345678")
    postfix.admin(
        "postconf", "-e", "partners = $mua_recipient_restrictions", "smtpd_restriction_classes = partners"
    )
    ctl(pair, "disable", "--yes")
    own = postfix.admin("postconf", "-h", "mua_recipient_restrictions").strip()
    assert own == "permit_sasl_authenticated, reject"
    for name in ("message_size_limit", "smtpd_restriction_classes", "partners", "mua_recipient_restrictions"):
        postfix.admin("postconf", "-X", name)
    assert (postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")) == before
    for name, content in whole.items():
        (postfix.config / name).write_bytes(content)


def test_who_is_killed_while_it_enables_can_be_taken_back(pair: tuple[Postfix, Policyd]) -> None:
    """The files are changed by then, and Postfix has not even been told."""
    postfix, policyd = pair
    before = postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")
    killed = (
        "import os; from policyd.cli import main; from policyd.postfix.edit import Editor;"
        "Editor.check = lambda self: os._exit(9); main()"
    )
    words = [
        "--config",
        str(policyd.config),
        "postfix",
        "enable",
        "--yes",
        "--postfix-config",
        str(postfix.config),
    ]
    done = subprocess.run([sys.executable, "-c", killed, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert "policyd_mx" in postfix.admin("postconf", "-n")
    ctl(pair, "disable", "--yes")
    assert (postfix.admin("postconf", "-n"), postfix.admin("postconf", "-P")) == before


def test_a_postfix_that_refuses_the_change_is_left_as_it_was(pair: tuple[Postfix, Policyd]) -> None:
    """postfix check fails: everything is put back, nothing stays behind, and the error says what Postfix said."""
    postfix, policyd = pair
    lists = postfix.config / "main.cf"
    kept = lists.read_bytes()
    # postconf takes it, postfix check does not.
    lists.write_bytes(kept + b"mail_owner = nobody-of-this-name\n")
    before = texts(postfix)
    told = policyd.try_ctl("postfix", "enable", "--yes", "--postfix-config", str(postfix.config))
    assert told.returncode == 1, told
    assert "postfix -c" in told.stderr
    assert "check: " in told.stderr
    assert texts(postfix) == before
    assert not list(postfix.config.glob("*policyd*"))
    lists.write_bytes(kept)


def test_it_does_not_make_submission_wait_for_a_policyd_that_is_not_there(
    pair: tuple[Postfix, Policyd],
) -> None:
    """enable while the daemon is stopped is refused, with what to do."""
    postfix, policyd = pair
    policyd.stop()
    told = policyd.try_ctl("postfix", "enable", "--yes", "--postfix-config", str(postfix.config))
    assert told.returncode == 1
    assert "start it first" in told.stderr
    policyd.start()
    wait_for(lambda: policyd.runs, policyd.told)
