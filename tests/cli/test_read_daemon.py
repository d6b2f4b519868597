"""ask, status and config: the daemon, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.cli.ask import attributes_of, encoded, reachable_address
from policyd.store.clock import wall
from policyd.store.health import write_health
from policyd.store.locks import DaemonLock
from policyd.units import DAY
from policyd.wire import RequestParser, parse_attributes
from tests.cli.conftest import Run
from tests.sample_database import Sample


@contextlib.contextmanager
def answering(listening: socket.socket, answer: bytes) -> Iterator[list[dict[str, str]]]:
    """A policy server for one request: parses it with policyd's own parser, then sends ``answer``."""
    seen: list[dict[str, str]] = []

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            parser = RequestParser(parse_attributes)
            while (request := parser.next_request()) is None:
                data = connection.recv(4096)
                if not data:
                    return
                parser.feed(data)
            seen.append(request)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        thread.join()
        listening.close()


def tcp() -> tuple[socket.socket, str]:
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, f"inet:127.0.0.1:{listening.getsockname()[1]}"


def test_ask_sends_what_was_typed_and_shows_the_answer(policyctl: Run) -> None:
    """Short names become Postfix's, what Postfix always sends is there, and the answer is escaped."""
    listening, address = tcp()
    with answering(listening, b"action=450 4.7.1 caf\xc3\xa9\n\n") as seen:
        ran = policyctl(
            "ask", "--to", address, "user=alice", "client=192.0.2.7", "recipients=3", "sender=a=b@example.org"
        )
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "action=450 4.7.1 caf\\xe9"
    (request,) = seen
    assert request["sasl_username"] == "alice"
    assert request["sasl_method"] == "plain"
    assert (request["client_address"], request["recipient_count"]) == ("192.0.2.7", "3")
    assert (request["protocol_state"], request["sender"]) == ("RCPT", "a=b@example.org")
    assert request["instance"] in ran.out


def test_ask_takes_a_file_and_a_unix_socket(policyctl: Run, tmp_path: Path) -> None:
    """A captured request goes out as it is."""
    path = tmp_path / "s"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    (tmp_path / "request").write_bytes(
        b"request=smtpd_access_policy\r\nprotocol_state=MAIL\r\ninstance=1.2.3\r\n\r\n"
    )
    with answering(listening, b"action=DUNNO\n\n") as seen:
        ran = policyctl("ask", "--to", f"unix:{path}", str(tmp_path / "request"), "--json")
    assert ran.json == {"listener": f"unix:{path}", "action": "DUNNO", "stage": "MAIL", "instance": "1.2.3"}
    assert seen[0]["protocol_state"] == "MAIL"


def test_ask_goes_to_the_first_listener_that_is_there(policyctl: Run, config_path: Path) -> None:
    """One that cannot be reached does not keep it from the next."""
    listening, address = tcp()
    text = config_path.read_text().replace(
        '"inet:127.0.0.1:1"', f'"systemd:policyd", "inet:127.0.0.1:1", "{address}"'
    )
    config_path.write_text(text)
    with answering(listening, b"action=DUNNO\n\n"):
        assert policyctl("ask", "user=alice", "--json").json["listener"] == address


def test_ask_says_in_one_line_why_there_is_no_answer(policyctl: Run) -> None:
    """Exit code 4 when nobody listens; 1 when what listens gives no policy answer."""
    ran = policyctl("ask", "user=alice")
    assert (ran.code, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert "inet:127.0.0.1:1: Connection refused" in ran.err
    for sent, told in (
        (b"", "closed the connection without an answer"),
        (b"220 mx ESMTP\n\n", "is no policy service"),
    ):
        listening, address = tcp()
        with answering(listening, sent):
            ran = policyctl("ask", "--to", address, "user=alice")
        assert (ran.code, ran.out) == (1, "")
        assert told in ran.err
    assert policyctl("ask", "--to", "somewhere", "user=alice").code == 2
    assert policyctl("ask", "user").code == 1


def test_addresses_to_connect_to() -> None:
    """A wildcard is asked on loopback; what names no address is not guessed."""
    assert reachable_address("inet:0.0.0.0:10047") == (socket.AF_INET, ("127.0.0.1", 10047))
    assert reachable_address("inet:[::]:10047") == (socket.AF_INET6, ("::1", 10047))
    assert reachable_address("tcp:10047:interface=127.0.0.2") == (socket.AF_INET, ("127.0.0.2", 10047))
    assert reachable_address("tcp6:port=10047:interface=\\:\\:1") == (socket.AF_INET6, ("::1", 10047))
    assert reachable_address("unix:/run/s") == (socket.AF_UNIX, "/run/s")
    assert reachable_address("systemd:policyd") is None
    assert reachable_address("haproxy:tcp:1") is None


def test_any_octets_typed_survive_the_wire() -> None:
    """What the shell hands over, even if it is no UTF-8, becomes a request that the parser takes."""
    typed = b"sender=\xff@x".decode("utf-8", "surrogateescape")
    parser = RequestParser(parse_attributes)
    parser.feed(encoded(attributes_of([typed])))
    request = parser.next_request()
    assert request is not None
    assert request["sender"] == "\\xff@x"


def test_status_tells_whether_it_runs(sample: Sample, policyctl: Run) -> None:
    """By the lock that the daemon holds; exit code 4 without one."""
    sample.ask()
    ran = policyctl("status", "--json")
    assert (ran.code, ran.json["running"]) == (4, False)
    assert any("does not run" in warning for warning in ran.json["warnings"])
    lock = DaemonLock(sample.path)
    try:
        ran = policyctl("status", "--json")
        assert (ran.code, ran.json["running"]) == (0, True)
        assert ran.json["pid"] == os.getpid()
        assert policyctl("status").out.startswith(f"policyd runs, pid {os.getpid()}\n")
    finally:
        lock.release()


def test_status_counts_the_last_hour_and_warns_of_a_missing_stage(sample: Sample, policyctl: Run) -> None:
    """A quota whose stage never arrives is named, with what to set; when it arrives the warning is gone."""
    sample.ask(2 * DAY)
    sample.ask(protocol_state="RCPT")
    found = policyctl("status", "--json").json
    assert found["last_hour"]["submission"] == {"pass": 1, "hold": 0, "refuse": 0}
    assert [(stage["direction"], stage["stage"]) for stage in found["stages"]] == [("submission", "RCPT")]
    missing = [warning for warning in found["warnings"] if "never at END-OF-MESSAGE" in warning]
    assert len(missing) == 2
    assert "smtpd_end_of_data_restrictions" in missing[0]
    sample.ask()
    assert not any("never at" in warning for warning in policyctl("status", "--json").json["warnings"])


def test_a_refused_recipient_misses_no_stage(sample: Sample, policyctl: Run) -> None:
    """Who is refused at RCPT does not come to END-OF-MESSAGE: status blames no wiring for that."""
    assert policyctl("ban", "user", "alice", "--force").code == 0
    sample.ask(protocol_state="RCPT")
    found = policyctl("status", "--json").json
    assert found["last_hour"]["submission"]["refuse"] == 1
    assert not any("never at" in warning for warning in found["warnings"])


def test_what_ask_asked_is_not_what_postfix_asks(sample: Sample, policyctl: Run) -> None:
    """A request by hand at END-OF-MESSAGE hides no wrong wiring, and is no mail."""
    sample.ask(protocol_state="RCPT")
    sample.ask(instance=attributes_of(["stage=END-OF-MESSAGE"])["instance"])
    found = policyctl("status", "--json").json
    assert [stage["stage"] for stage in found["stages"]] == ["RCPT"]
    assert found["last_hour"]["submission"]["pass"] == 1
    assert any("never at END-OF-MESSAGE" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("sasl_usrname=alice", "did you mean sasl_username?"),
        ("clinet=192.0.2.7", "did you mean client?"),
        ("nonsense_at_all=1", "it is ignored"),
        ("stage=END-OF-DATA", "did you mean END-OF-MESSAGE?"),
        ("stage=rcpt", "did you mean RCPT?"),
        ("stage=7", "there are CONNECT, EHLO"),
    ],
)
def test_a_mistyped_attribute_is_told(sample: Sample, policyctl: Run, typed: str, says: str) -> None:
    """policyd ignores what it does not know; who typed it did not mean that."""
    ran = policyctl("try", "user=alice", typed, "--json")
    assert ran.code == 0
    assert ran.json["verdict"] == "pass"
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("warning: ")
    assert says in ran.err
    assert policyctl("try", "user=alice", "stage=DATA").err == ""


def test_status_warns_when_nothing_is_asked(sample: Sample, policyctl: Run) -> None:
    """Silence is a finding, whether it was ever different or not."""
    assert any(
        "nothing was ever asked" in warning for warning in policyctl("status", "--json").json["warnings"]
    )
    sample.ask(3 * DAY)
    assert any(
        "nothing was asked in the last day" in warning
        for warning in policyctl("status", "--json").json["warnings"]
    )


def test_status_warns_of_a_policy_that_was_not_reloaded(
    sample: Sample, policyctl: Run, config_path: Path
) -> None:
    """The file differs from what the daemon says that it goes by; what decided before a restart is no news."""

    def warned() -> bool:
        return any("reload policyd" in warning for warning in policyctl("status", "--json").json["warnings"])

    sample.ask()
    version = policyctl("config", "check", "--json").json["policy"]
    lock = DaemonLock(sample.path)
    try:
        write_health(sample.connection, [("policy", version, wall(), {})], wall())
        assert not warned()
        config_path.write_text(config_path.read_text().replace("5 recipients", "6 recipients"))
        assert warned()
        newer = policyctl("config", "check", "--json").json["policy"]
        write_health(sample.connection, [("policy", newer, wall(), {})], wall())
        assert not warned()
        write_health(sample.connection, [("policy", version, wall(), {})], wall() - DAY)
        assert not warned()
    finally:
        lock.release()
    assert not warned()


def test_status_shows_a_pause(sample: Sample, policyctl: Run) -> None:
    """Nobody forgets that everything is in shadow."""
    assert policyctl("pause", "--for", "1h", "--reason", "migration").code == 0
    assert "PAUSED" in policyctl("status").out
    assert policyctl("status", "--json").json["modes"][0]["reason"] == "migration"


def test_without_a_database_one_line_says_what_to_do(policyctl: Run) -> None:
    """No command makes a database, and each says how one comes to be."""
    for arguments in (
        ("status",),
        ("log",),
        ("why", "a"),
        ("db", "check"),
        ("db", "compact"),
        ("try", "user=a"),
    ):
        ran = policyctl(*arguments)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), arguments
        assert "there is no database at" in ran.err


def test_config_check_and_show(policyctl: Run, config_path: Path, tmp_path: Path) -> None:
    """What is shown is a file that means the same; every problem is told at once, with its place."""
    assert policyctl("config", "check").out.startswith(f"{config_path}: right; policy ")
    shown = tmp_path / "shown.toml"
    shown.write_text(policyctl("config", "show").out)
    policy = policyctl("config", "check", "--json").json["policy"]
    assert policyctl("config", "check", str(shown), "--json").json["policy"] == policy
    assert policyctl("config", "show", "--json").json["site"]["default_domain"] == "example.org"
    config_path.write_text(config_path.read_text().replace("per 1h", "per hour").replace("[keep]", "[keeep]"))
    ran = policyctl("config", "check")
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.err.splitlines()) >= 3
    assert all(f"{config_path}:" in problem for problem in ran.err.splitlines())


def test_config_check_names_the_directories_that_are_missing(
    policyctl: Run, config_path: Path, tmp_path: Path
) -> None:
    """The daemon would not start without them; each warning has the command that makes one."""
    assert policyctl("config", "check").err == ""
    text = config_path.read_text()
    text = text.replace('"inet:127.0.0.1:1"', f'"unix:{tmp_path}/run/s"')
    text = text.replace(f"{tmp_path}/policyd.db", f"{tmp_path}/data it/policyd.db")
    text = text.replace(f"{tmp_path}/decisions.log", f"{tmp_path}/log/decisions.log")
    config_path.write_text(text)
    ran = policyctl("config", "check", "--json")
    assert ran.code == 0
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["warning"] * 3
    assert len(ran.json["warnings"]) == 3
    for warning in ran.json["warnings"]:
        command = warning.rpartition("make it with '")[2].removesuffix("'")
        subprocess.run(["/bin/sh", "-c", command], check=True)
    assert policyctl("config", "check").err == ""


def test_a_check_that_refuses_its_options_is_found(policyctl: Run, config_path: Path) -> None:
    """config check goes as far as the daemon's start does."""
    config_path.write_text(
        config_path.read_text().replace('for = "submission"\nper = "server"', 'for = "mx"\nper = "server"')
    )
    ran = policyctl("config", "check")
    assert ran.code == 1
    assert "whole-server" in ran.err


@pytest.mark.parametrize(
    "command", [["log"], ["why", "alice"], ["try", "user=alice"], ["status"], ["quota", "show", "alice"]]
)
def test_no_command_that_reads_loads_twisted_or_dns(
    sample: Sample, config_path: Path, command: list[str]
) -> None:
    """Start-up stays quick: neither Twisted nor dnspython is imported."""
    sample.ask()
    code = (
        "import sys\nfrom policyd.cli import main\n"
        f"try:\n    main.main(['--config', {str(config_path)!r}, *{command!r}])\n"
        "except SystemExit as ended:\n    assert ended.code in (0, 4), ended.code\n"
        "import json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"twisted", "dns", "spf", "uvloop", "sqlite_utils"}
