"""policyctl queue: exactly the mails of one login, whatever stands in the queue files; commands of Postfix are played here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from policyd.alert import Alert
from policyd.alerts.payload import encoded
from policyd.cli import postfix_queue
from policyd.cli.postfix_queue import Queue, _logins, _message
from policyd.errors import UserError
from tests.cli.place import Place
from tests.sample_database import Sample

ALICE = "alice@example.org"
#: Long queue ids, and a short one.
MINE, HELD, BOBS, BOTH, SHORT = (
    "4hVWMb1DFTz1Q",
    "4hVWMc2Xqpz1R",
    "4hVWMd3Yqpz1S",
    "4hVWMf4Zqpz1T",
    "4F3A1B0001",
)

POSTQUEUE = """#!/bin/sh
cat {place}/postqueue.out
"""
POSTCAT = """#!/bin/sh
# postcat -eq ID...: ends at the first that is not there, as the real one does
shift
for each in "$@"; do
    [ -f {place}/files/$each ] || {{ echo "postcat: fatal: open queue file $each" >&2; exit 1; }}
    echo "*** ENVELOPE RECORDS deferred/4/$each ***"
    cat {place}/files/$each
done
"""
POSTSUPER = """#!/bin/sh
while read -r each; do
    echo "$1 $each" >> {place}/postsuper.did
    case $1 in -h) what="placed on hold";; -H) what="released from hold";; -d) what=removed;; esac
    echo "postsuper: $each: $what" >&2
    [ "$1" = -h ] && sed -i "/$each/s/deferred/hold/" {place}/postqueue.out
done
exit 0
"""


class Mails:
    """A queue as Postfix's commands show it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "files").mkdir()
        (place / "bin").mkdir()
        (place / "postqueue.out").write_text("")
        for name, text in (("postqueue", POSTQUEUE), ("postcat", POSTCAT), ("postsuper", POSTSUPER)):
            program = place / "bin" / name
            program.write_text(text.format(place=place))
            program.chmod(0o755)

    def add(self, queue_id: str, *logins: str, queue: str = "deferred", arrived: int = 1_700_000_000) -> None:
        entry = {
            "queue_name": queue,
            "queue_id": queue_id,
            "arrival_time": arrived,
            "message_size": 325,
            "forced_expire": False,
            "sender": "x@example.org",
            "recipients": [
                {"address": "a@example.net", "delay_reason": "timed\x1b[31m out"},
                {"address": "b"},
            ],
        }
        with open(self.place / "postqueue.out", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        records = [
            b"sender: x@example.org",
            *(b"named_attribute: sasl_username=" + each.encode() for each in logins),
        ]
        (self.place / "files" / queue_id).write_bytes(b"\n".join(records) + b"\n")

    @property
    def did(self) -> list[str]:
        path = self.place / "postsuper.did"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mails:
    mails = Mails(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    mails.add(MINE, "Alice")
    mails.add(HELD, ALICE, queue="hold")
    mails.add(BOBS, "bob")
    mails.add(BOTH, "alice", "bob")
    return mails


def ids(place: Place, *words: str) -> list[str]:
    return [row["queue_id"] for row in place.json("queue", *words)]


def test_the_login_in_the_queue_file_says_whose_it_is(place: Place, mails: Mails) -> None:
    """In the form of policyd's accounts; a file that names two logins is nobody's."""
    assert ids(place, "alice") == [MINE, HELD]
    assert ids(place, "BOB@example.org") == [BOBS]
    text = place.run("queue", "alice").output
    assert "2 mails" in text
    assert "\x1b[31m" not in text
    assert "no mail of carol@example.org waits" in place.run("queue", "carol").output


def test_hold_release_and_delete_take_exactly_its_mails(place: Place, mails: Mails) -> None:
    """Hold takes what is not held, release what is; delete holds first, and deletes what is still its own there."""
    assert place.run("queue", "alice", "--hold", "--yes").output.endswith(f"{ALICE}: 1 mail held\n")
    assert mails.did == [f"-h {MINE}"]
    assert place.json("queue", "alice", "--release", "--yes")["done"] == [MINE, HELD]
    assert mails.did[1:] == [f"-H {MINE}", f"-H {HELD}"]
    assert place.run("queue", "bob", "--delete", "--yes").exit_code == 0
    assert mails.did[3:] == [f"-h {BOBS}", f"-d {BOBS}"]


def test_nothing_is_done_without_a_yes(place: Place, mails: Mails, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can be asked in a script; only root may act."""
    assert place.ran("queue", "alice", "--hold").exit_code == 2
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = place.ran("queue", "alice", "--hold", "--yes")
    assert (result.exit_code, "run policyctl as root" in result.stderr) == (1, True)
    assert mails.did == []


@pytest.mark.parametrize("user", ["alice", "carol"])
def test_quiet_for_hooks(place: Place, mails: Mails, user: str) -> None:
    """Nothing is printed, and 0 is what a hook is told, also where nothing waits."""
    result = place.ran("queue", user, "--hold", "--yes", "--quiet")
    assert result == (0, "", "")


@pytest.mark.parametrize(
    ("data", "held"),
    [
        ({"kind": "suspend", "subject": ALICE, "resolved": False, "facts": {}}, True),
        ({"kind": "suspend", "subject": ALICE, "resolved": True, "facts": {}}, False),
        ({"kind": "detect", "subject": ALICE, "resolved": False, "facts": {}}, False),
        ({"kind": "suspend", "subject": "", "resolved": False, "facts": {"events": [
            {"subject": "bob@example.org", "resolved": True}, {"subject": ALICE, "resolved": False}]}}, True),
    ],
)  # fmt: skip
def test_an_alert_on_stdin_holds_who_was_suspended(
    place: Place, mails: Mails, data: dict[str, object], held: bool
) -> None:
    """What an exec: channel gives to a command; any other alert is none of its business."""
    result = place.run(
        "queue", "-", "--hold", "--yes", "--quiet", stdin=json.dumps({"type": "x", "data": data})
    )
    assert result.exit_code == 0, result.output
    assert mails.did == ([f"-h {MINE}"] if held else [])


@pytest.mark.parametrize(
    "text", ["", "alice", "[]", '{"data": 1}', '{"data": {"kind": "suspend"}}', "[" * 100_000]
)
def test_what_is_no_alert(place: Place, mails: Mails, text: str) -> None:
    """One line that says so, and nothing is done."""
    result = place.run("queue", "-", "--hold", "--yes", stdin=text)
    assert result.exit_code == 1
    assert "no alert" in result.output
    assert mails.did == []


def test_the_alert_that_policyd_really_sends(place: Place, mails: Mails) -> None:
    """The JSON of the alerts' own code, one of a suspension and one of several at once, holds those who were suspended."""
    alone = Alert("a1", "exec", "suspend", ALICE, False, {"reason": "x"}, 1, 1, 1)
    events = [{"subject": "bob@example.org", "resolved": False, "facts": {}, "wall_at": 1}]
    several = Alert("a2", "exec", "suspend", "", False, {"events": events, "left_out": 0}, 2, 1, 1)
    for alert in (alone, several):
        result = place.run("queue", "-", "--hold", "--yes", "--quiet", stdin=encoded(alert, "mx.example.org"))
        assert (result.exit_code, result.output) == (0, "")
    assert mails.did == [f"-h {MINE}", f"-h {BOBS}"]


def test_decisions_say_whose_it_is_where_the_file_does_not(place: Place, mails: Mails) -> None:
    """By the queue ids of policyd's decisions, unless the queue file says otherwise or the decision is older than the mail."""
    now = 2_000_000_000
    sample = Sample(place.database)
    try:
        decided = sample.ask(queue_id=SHORT)
        wall = decided.wall_at // 1000
        sample.ask(queue_id=BOBS)
        sample.ask(queue_id="4F3A1B0002")
    finally:
        sample.close()
    mails.add(SHORT, arrived=wall - 1)
    mails.add("4F3A1B0002", arrived=now)  # the id is used again
    found = {row["queue_id"]: row["found_by"] for row in place.json("queue", "alice")}
    assert found == {MINE: ["envelope"], HELD: ["envelope"], SHORT: ["decisions"]}


def test_without_root_the_decisions_are_all_there_is(
    place: Place, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and lists what it knows."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = place.ran("queue", "alice")
    assert result.exit_code == 0
    assert "only root can read" in result.stderr


def test_a_mail_that_goes_meanwhile_hides_no_other(mails: Mails, monkeypatch: pytest.MonkeyPatch) -> None:
    """postcat ends at a file that was delivered; those behind it are asked about all the same."""
    monkeypatch.setattr(postfix_queue, "BATCH", 3)
    wanted = ["4hVWMz9Zqpz10", MINE, "4hVWMz9Zqpz11", HELD, BOBS, "4hVWMz9Zqpz12"]
    assert list(Queue().logins(wanted)) == [MINE, HELD, BOBS]


def test_no_record_of_a_sender_passes_for_a_login() -> None:
    """Lines end in a line feed alone; what a sender put behind a carriage return is part of his own record."""
    output = (
        b"*** ENVELOPE RECORDS active/4hVWMb1DFTz1Q ***\n"
        b"sender: x\rnamed_attribute: sasl_username=alice\n"
        b"named_attribute: helo_name=sasl_username=alice\n"
        b"recipient: *** ENVELOPE RECORDS active/4hVWMc2Xqpz1R ***\n"
        b"named_attribute: sasl_username=mallory\n"
        b"*** MESSAGE FILE END active/4hVWMb1DFTz1Q ***\n"
    )
    assert _logins(output) == {"4hVWMb1DFTz1Q": ["mallory"]}


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{", b'{"queue_id": 1}', b"[" * 100_000,
     b'{"queue_name":"x","queue_id":"-h; rm","arrival_time":1,"message_size":1,"sender":"","recipients":[]}'],
)  # fmt: skip
def test_lines_that_are_no_messages(line: bytes) -> None:
    """Nothing that is not a queue id gets as far as postsuper."""
    assert _message(line) is None


@pytest.mark.parametrize(
    "sender", [b"\\u00011x@example.org\\u1", b"\x01@example.org", b"\xff@example.org", b'"']
)
def test_no_address_hides_a_mail(place: Place, mails: Mails, sender: bytes) -> None:
    """What Postfix writes for an address that is no text, or of control characters, is no JSON; the mail is held all the same."""
    path = mails.place / "postqueue.out"
    path.write_bytes(path.read_bytes().replace(b'"x@example.org"', b'"' + sender + b'"'))
    assert set(ids(place, ALICE)) == {MINE, HELD}
    assert place.run("queue", ALICE, "--hold", "--yes").exit_code == 0
    assert mails.did == [f"-h {MINE}"]


def test_a_postfix_that_does_not_tell(place: Place, mails: Mails) -> None:
    """Its own last word, in one line."""
    (mails.place / "bin/postqueue").write_text("#!/bin/sh\necho 'postqueue: fatal: no showq' >&2\nexit 69\n")
    result = place.ran("queue", "alice")
    assert (result.exit_code, "postqueue: fatal: no showq" in result.stderr) == (1, True)
    assert result.stderr.count("\n") == 1
    (mails.place / "bin/postsuper").write_text("#!/bin/sh\necho 'postsuper: fatal: read-only' >&2\nexit 1\n")
    with pytest.raises(UserError, match="read-only"):
        Queue().act(postfix_queue.HOLD, [MINE])


def test_no_postfix_here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what is missing."""
    monkeypatch.setattr(postfix_queue.shutil, "which", lambda name, path: None)
    result = place.ran("queue", "alice")
    assert (result.exit_code, "is Postfix installed here?" in result.stderr) == (1, True)
