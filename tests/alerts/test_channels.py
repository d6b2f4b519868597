"""Each way to tell the admin, against a real receiver on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.alert import Alert
from policyd.alerts import Deliver
from policyd.alerts.channels import channels
from policyd.alerts.courier import Courier
from policyd.alerts.hook import Hook
from policyd.alerts.journal import Journal, Syslog
from policyd.alerts.mail import Mail, OwnSessions
from policyd.alerts.webhook import Webhook, read_key
from policyd.config import Alerts, AlertSection
from policyd.hook import answer, serve
from tests.alerts.receivers import MailServer, WebServer
from tests.alerts.test_text import FACTS, alert
from tests.system.waiting import wait_for

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


# --- mail ---------------------------------------------------------------------------------------------------------------


def mail(server: MailServer, own: OwnSessions | None = None) -> Mail:
    return Mail("root", server.address, "policyd@mx.example.org", "mx.example.org", 2.0, own or OwnSessions())


def test_a_mail() -> None:
    """From the null sender, so that nothing bounces; no answer of a holiday; the same Message-ID at each attempt."""
    with MailServer() as server:
        own = OwnSessions()
        assert mail(server, own)(alert(**FACTS)) == ("", False, 0)
        assert mail(server, own)(alert(**FACTS)).error == ""
        assert not own
    assert "mail FROM:<>" in [line.partition(" size")[0] for line in server.lines]
    assert "rcpt TO:<root>" in server.lines
    first, second = server.mails
    assert first["Message-ID"] == second["Message-ID"] == "<policyd.0123456789abcdef0123@mx.example.org>"
    assert first["Auto-Submitted"] == "auto-generated"
    assert "alice@example.org is suspended" in first["Subject"]
    assert "policyctl release alice@example.org" in first.get_payload(decode=True).decode()  # type: ignore[union-attr]


def test_each_session_has_a_name_that_nobody_can_guess() -> None:
    """The name is known to be policyd's own while the session lasts, and never again."""
    own = OwnSessions()
    seen: list[bool] = []
    with MailServer() as server:
        for _ in range(2):
            mail(server, own)(alert())
        greetings = [line.split()[1] for line in server.lines if line.lower().startswith("ehlo")]
        seen = [greeting in own for greeting in greetings]
    assert len(set(greetings)) == 2
    assert all(len(greeting.partition(".")[0]) == len("policyd-alert-") + 32 for greeting in greetings)
    assert seen == [False, False]
    name = own.begin("mx")
    assert name in own
    assert "policyd-alert-0.mx" not in own


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "END"])
def test_a_mail_server_that_refuses(at: str) -> None:
    """Whatever it refuses, the alert is not told, and why is known."""
    with MailServer({at: "451 4.3.0 later\x07"}) as server:
        sent = mail(server)(alert())
    assert "451" in sent.error
    assert "later" in sent.error
    assert not server.mails


def test_no_mail_server() -> None:
    """Connection refused is no success."""
    with MailServer() as server:
        pass
    assert "refused" in mail(server)(alert()).error


def test_a_hostile_name_adds_no_header() -> None:
    """An account called like a header stays a name."""
    with MailServer() as server:
        assert not mail(server)(alert(subject="a\r\nBcc: all@example.org")).error
    (got,) = server.mails
    assert got["Bcc"] is None


def silent_server() -> tuple[socket.socket, tuple[str, int]]:
    """Takes connections, and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()


def test_a_server_that_never_answers_is_given_up() -> None:
    """Neither mail nor webhook waits for ever."""
    listener, address = silent_server()
    with listener:
        assert Mail("root", address, "p@mx", "mx", 0.1, OwnSessions())(alert()).error
        url = f"http://127.0.0.1:{address[1]}/"
        assert Webhook(url, lambda: b"", "mx", 0.1)(alert()).error


def test_a_server_that_drips_is_given_up() -> None:
    """A byte now and then keeps no channel busy: the whole has an end too."""
    listener, address = silent_server()
    done = threading.Event()

    def drip() -> None:
        with listener.accept()[0] as sock:
            sock.sendall(b"HTTP/1.1 ")
            while not done.wait(0.02):
                try:
                    sock.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    with listener:
        sent = Webhook(f"http://127.0.0.1:{address[1]}/", lambda: b"", "mx", 0.3)(alert())
    done.set()
    thread.join()
    assert sent.error


# --- webhook ------------------------------------------------------------------------------------------------------------


def test_a_webhook_is_signed_as_standard_webhooks_has_it() -> None:
    """The receiver's library can check it: HMAC-SHA256 over id, timestamp and body."""
    with WebServer() as server:
        assert Webhook(server.url, lambda: read_key(SECRET), "mx", 5.0, lambda: 1_700_000_000.9)(
            alert(**FACTS)
        ) == ("", False, 0)
    headers = server.headers
    assert headers["webhook-id"] == "0123456789abcdef0123"
    assert headers["webhook-timestamp"] == "1700000000"
    signed = b"0123456789abcdef0123.1700000000." + server.body
    expected = base64.b64encode(hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    (told,) = server.told
    assert told["type"] == "policyd.suspend.began"
    assert told["data"]["facts"]["ref"] == "7F3K2AA"
    assert told["title"] in told["text"]


@pytest.mark.parametrize(
    ("status", "gone"), [(500, False), (301, False), (404, False), (429, False), (410, True), (0, False)]
)
def test_what_a_webhook_answers(status: int, gone: bool) -> None:
    """Only 2xx is an acknowledgement; 410 Gone stops the channel; a wish for a pause is heard, up to an hour."""
    with WebServer(lambda number: status) as server:
        server.answer_headers = {"Retry-After": "99999"} if status == 429 else {}
        sent = Webhook(server.url, lambda: b"", "mx", 5.0)(alert())
    assert sent.error
    assert sent.gone is gone
    assert sent.retry_after == (3_600_000 if status == 429 else 0)
    assert "webhook-signature" not in server.headers


def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    """https means that the other end is who it says."""
    import ssl

    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run([*command, "-subj", "/CN=localhost", *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    listener, address = silent_server()

    def take() -> None:
        raw = listener.accept()[0]
        try:
            context.wrap_socket(raw, server_side=True).close()
        except OSError:
            raw.close()

    thread = threading.Thread(target=take)
    thread.start()
    with listener:
        sent = Webhook(f"https://localhost:{address[1]}/", lambda: b"", "mx", 5.0)(alert())
        thread.join()
    assert "CERTIFICATE_VERIFY_FAILED" in sent.error


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!!", "x" * 500])
def test_a_secret_that_is_none(text: str) -> None:
    """A typing error is told, and does not become a signature that nobody can check; the secret itself is not told."""
    with pytest.raises(ValueError, match="base64") as error:
        read_key(text)
    assert len(text) < 8 or text not in str(error.value)


def test_the_secret_is_read_from_its_file_each_time(tmp_path: Path) -> None:
    """It can be changed without a restart; where it cannot be read nothing unsigned goes out."""
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    with WebServer() as server:
        section = AlertSection(server.url, "web", secret_file=str(file))
        ((_, (_, deliver)),) = channels(Alerts(), (section,), OwnSessions()).items()
        assert deliver(alert()).error == ""
        assert server.headers["webhook-signature"].startswith("v1,")
        file.unlink()
        sent = deliver(alert())
    assert str(file) in sent.error
    assert len(server.asked) == 1


# --- commands -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A hook that listens, and the configuration that it goes by: the socket's path, and the directory of the commands."""
    path = tmp_path / "hook.sock"
    config = tmp_path / "policyd.toml"
    names = "".join(
        f'[[alert]]\nto = "exec:{tmp_path}/{name}"\n' for name in ("good", "bad", "slow", "missing")
    )
    config.write_text(names)
    process = subprocess.Popen(
        [sys.executable, "-m", "policyd.hook", "--config", str(config), "--listen", str(path)],
        stderr=subprocess.PIPE,
    )
    while not path.is_socket():
        assert process.poll() is None
    try:
        yield path, tmp_path
    finally:
        process.terminate()
        process.communicate()


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_commands_are_run_by_the_hook(hook: tuple[Path, Path]) -> None:
    """The JSON is on standard input, the exit code says whether it was told, time is bounded, and nothing else can be run."""
    path, directory = hook
    assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o660)
    script(directory / "good", f"cat >{directory}/told; echo noise; test $# = 0")
    script(directory / "bad", "echo no such pager >&2; exit 3")
    script(directory / "slow", f"sleep 1000 & echo $! >{directory}/pid; sleep 1000")
    script(directory / "other", f"touch {directory}/other-ran")

    def tell(name: str, seconds: float = 5.0) -> str:
        return Hook(str(directory / name), str(path), "mx", seconds)(alert(**FACTS)).error

    assert tell("good") == ""
    assert json.loads((directory / "told").read_text())["data"]["facts"]["ref"] == "7F3K2AA"
    assert "exit code 3: no such pager" in tell("bad")
    assert "ran for more than 0.3 s" in tell("slow", 0.3)
    child = int((directory / "pid").read_text())
    state = Path(f"/proc/{child}/stat")
    wait_for(
        lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", state.read_text
    )
    assert "stands in no [[alert]]" in tell("other")
    assert not (directory / "other-ran").exists()
    assert "No such file" in tell("missing")
    assert "stands in no [[alert]]" in tell("good; touch x")


def test_without_a_hook(tmp_path: Path) -> None:
    """That nobody listens is told with what to start."""
    sent = Hook("/bin/true", str(tmp_path / "none"), "mx", 1.0)(alert())
    assert "policyd-hook.socket" in sent.error


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"command": 1}', b'{"command": "/bin/true"}', b"\xff" * 100, b"[" * 60_000],
)
def test_whatever_the_hook_is_asked(tmp_path: Path, data: bytes) -> None:
    """Garbage gets an answer, and runs nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, str(tmp_path / "none.toml"))
        assert json.loads(ours.recv(4096))["error"]


def test_the_hook_as_systemd_runs_it(tmp_path: Path) -> None:
    """Accept=yes: the connection is its standard input."""
    command = tmp_path / "page"
    script(command, f"cat >{tmp_path}/told")
    config = tmp_path / "policyd.toml"
    config.write_text(f'[[alert]]\nto = "exec:{command}"\n')
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "policyd.hook", "--config", str(config)],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        ours.sendall(json.dumps({"command": str(command), "seconds": 5, "alert": {"x": 1}}).encode())
        ours.shutdown(socket.SHUT_WR)
        assert json.loads(ours.recv(4096)) == {"error": ""}
        assert process.wait() == 0
    assert json.loads((tmp_path / "told").read_text()) == {"x": 1}


def test_a_hook_whose_configuration_is_broken_says_so(tmp_path: Path) -> None:
    """And runs nothing."""
    config = tmp_path / "policyd.toml"
    config.write_text("[[alert]]\nto = 5\n")
    assert "must be a text" in answer({"command": "/bin/true", "alert": {}}, str(config))


# --- syslog and journal -------------------------------------------------------------------------------------------------


def receiver(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(10)
    return sock


def test_syslog_and_journal(tmp_path: Path) -> None:
    """One line with a priority; one entry with fields, none of which a name can forge; no daemon is no success."""
    with receiver(tmp_path / "log") as log:
        assert Syslog("mail", str(tmp_path / "log"))(alert(**FACTS)).error == ""
        line = log.recv(65536).decode()
    assert line.startswith(f"<17>policyd[{os.getpid()}]: alert suspend ")
    assert "\n" not in line
    with receiver(tmp_path / "journal") as journal:
        assert Journal(str(tmp_path / "journal"))(alert(subject="a\nPRIORITY=7", resolved=True)).error == ""
        entry = journal.recv(65536)
    assert entry.startswith(b"PRIORITY\n" + (1).to_bytes(8, "little") + b"5\n")
    assert b"\nPOLICYD_SUBJECT\n" + (12).to_bytes(8, "little") + b"a\nPRIORITY=7\n" in entry
    assert Syslog("mail", str(tmp_path / "none"))(alert()).error
    assert Journal(str(tmp_path / "none"))(alert()).error


# --- couriers -----------------------------------------------------------------------------------------------------------


def test_a_defect_in_a_channel_is_a_failed_attempt() -> None:
    """The thread goes on, and the alert is tried again."""
    done: list[tuple[str, str]] = []
    came = threading.Semaphore(0)

    def broken(alert: Alert) -> None:
        raise RuntimeError("what")

    def back(uid: str, sent: object) -> None:
        done.append((uid, str(sent)))
        came.release()

    deliver: Deliver = broken  # type: ignore[assignment]
    courier = Courier("x", deliver, back)
    for _ in range(2):
        courier.send(alert())
        assert came.acquire(timeout=10)
    courier.end()
    assert len(done) == 2
    assert "defect" in done[0][1]
