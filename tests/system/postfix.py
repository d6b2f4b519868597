"""A private Postfix as Debian packages it, with Dovecot for passwords: own directories, loopback only, nothing left behind.

It starts from Debian's own ``main.cf`` and ``master.cf``; each ``inet`` service gets a free port on 127.0.0.1. What is
accepted goes to discard(8), so that each accepted recipient leaves one ``status=sent`` line in the log.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from tests.ports import free_port
from tests.system.waiting import PATIENCE, wait_for

DEBIAN = Path("/usr/share/postfix")
CONTRIB = Path(__file__).parents[2] / "contrib/postfix"
PASSWORD = "correct-horse"
#: The socket as main.cf names it: relative to the queue directory, which is also smtpd's root directory.
SOCKET = "policyd/policy.sock"

# Debian's main.cf comes first, this second: the later value of a parameter holds.
MAIN_CF = """
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file_prefixes = {directory}
maillog_file = {directory}/mail.log
myhostname = mx.example.org
mydestination = example.org
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
local_transport = discard:
default_transport = discard:
# Accept as fast as it goes, even if delivery is slower.
in_flow_delay = 0
# A short queue id is used again after delivery.
enable_long_queue_ids = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
smtpd_tls_security_level = may
smtpd_tls_cert_file = {directory}/tls/cert.pem
smtpd_tls_key_file = {directory}/tls/key.pem
"""

DOVECOT_CONF = """
protocols =
ssl = no
base_dir = {directory}/dovecot
log_path = {directory}/dovecot.log
auth_mechanisms = plain login
disable_plaintext_auth = no
passdb {{
  driver = static
  args = password={password}
}}
service auth {{
  unix_listener {directory}/queue/private/auth {{
    mode = 0600
    user = postfix
  }}
}}
"""

_INET = re.compile(r"^(?:127\.0\.0\.1:)?(\w+)(\s+inet\s)", re.MULTILINE)
#: A container whose clock and file system do not agree to the second, and what Postfix says for fear of it.
_CLOCK = re.compile(
    r"warning: (?:file system clock is \d+ seconds? |resetting file time stamps - this hurts performance)"
)


def stock_master_cf(*entries: str) -> str:
    """Debian's master.cf with ``entries``, which it ships commented out, switched on."""
    text = (DEBIAN / "master.cf.dist").read_text()
    for entry in entries:
        text = switched_on(text, entry)
    return text


def contrib(name: str, *entries: str) -> str:
    """A file of ``contrib/postfix`` as an admin pastes it, with ``entries`` that stand there as comments switched on."""
    text = (CONTRIB / name).read_text()
    for entry in entries:
        text = switched_on(text, entry)
    return text


def switched_on(master_cf: str, entry: str) -> str:
    """``master_cf`` with the comment signs of ``entry`` and its options removed."""
    block = re.search(rf"^#{re.escape(entry)}\s.*\n(?:# .*\n)*", master_cf, re.MULTILINE)
    assert block, f"there is no entry {entry} to switch on"
    # Lines "#  -o" are options, "#     Instead of" is prose.
    lines = [re.sub(r"^#(?=[\w]|  -o)", "", line) for line in block[0].splitlines(keepends=True)]
    return master_cf.replace(block[0], "".join(lines))


def without(master_cf: str, entry: str) -> str:
    """``master_cf`` without the one-line ``entry``."""
    text, count = re.subn(rf"^{entry}\s.*\n", "", master_cf, flags=re.MULTILINE)
    assert count == 1, f"entry {entry} stands there {count} times"
    return text


class Postfix:
    """One instance; a context manager.

    :param main_cf: what the admin adds to main.cf.
    :param master_cf: the whole master.cf, with the service names of real life.
    :param commands: shell commands for the admin to type, such as ``postconf -P ...``, run before the start.
    """

    def __init__(self, main_cf: str, master_cf: str, commands: str = "") -> None:
        assert os.geteuid() == 0, (
            "Postfix starts as root only: run the tests as root, or with -m 'not system'"
        )
        self.directory = Path(tempfile.mkdtemp(prefix="policyd-test-", dir="/tmp"))
        self.directory.chmod(0o755)  # user postfix goes through it
        self.config = self.directory / "etc"
        self.queue = self.directory / "queue"
        self.log_file = self.directory / "mail.log"
        #: Port by the name of the service in master.cf.
        self.ports: dict[str, int] = {}
        self._programs: list[subprocess.Popen[bytes]] = []
        self._write(main_cf, master_cf, commands)

    def _write(self, main_cf: str, master_cf: str, commands: str) -> None:
        for name in ("etc", "data", "queue", "queue/etc", "queue/private", "tls"):
            (self.directory / name).mkdir()
        shutil.chown(self.directory / "data", "postfix")
        shutil.chown(self.queue / "private", "postfix")
        # As packaged: policyd's user owns it, Postfix's group goes in, and the sticky group makes sockets Postfix's too.
        (self.queue / "policyd").mkdir()
        shutil.chown(self.queue / "policyd", group="postfix")
        (self.queue / "policyd").chmod(0o2750)
        # What Debian's configure-instance.sh copies into the chroot.
        for name in ("hosts", "nsswitch.conf", "resolv.conf", "services", "localtime"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(Path("/etc") / name, self.queue / "etc" / name)
        _certificate(self.directory / "tls")
        settings = (DEBIAN / "main.cf.debian").read_text() + MAIN_CF.format(directory=self.directory)
        (self.config / "main.cf").write_text(settings + main_cf)
        (self.config / "master.cf").write_text(master_cf)
        for name in ("dynamicmaps.cf", "postfix-files"):
            shutil.copy(Path("/etc/postfix") / name, self.config / name)
        if commands:
            self.admin("sh", "-eu", "-c", commands)
        placed = _INET.sub(self._place, (self.config / "master.cf").read_text())
        for service, port in self.ports.items():
            placed = placed.replace(f"[127.0.0.1]:{service}", f"[127.0.0.1]:{port}")
        (self.config / "master.cf").write_text(placed)
        # Postfix reads a main.cf that has just been written again and again for 2 s: it could be half of one.
        os.utime(self.config / "main.cf", (0, 0))
        (self.directory / "dovecot.conf").write_text(
            DOVECOT_CONF.format(directory=self.directory, password=PASSWORD)
        )

    def _place(self, entry: re.Match[str]) -> str:
        port = self.ports.setdefault(entry[1], free_port())
        return f"127.0.0.1:{port}{entry[2]}"

    def admin(self, *command: str, quiet: bool = True) -> str:
        """The output of a command such as ``postconf -n``, run by root for this instance; where it is to be ``quiet``, a
        word from it on stderr is a failure."""
        done = subprocess.run(
            command,
            env={**os.environ, "MAIL_CONFIG": str(self.config), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done)
        assert not (quiet and done.stderr), (command, done)
        return done.stdout

    def __enter__(self) -> Self:
        try:
            self._start("dovecot", "-F", "-c", str(self.directory / "dovecot.conf"))
            self._start("postfix", "-c", str(self.config), "start-fg")
            wait_for((self.queue / "private/auth").is_socket, self._state)
            for port in self.ports.values():
                wait_for(functools.partial(_listens, port), self._state)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for program in self._programs:
                program.terminate()
            # master(8) leads a group of its own.
            with contextlib.suppress(FileNotFoundError):
                _end(int((self.queue / "pid/master.pid").read_text()))
            for program in self._programs:
                program.wait(PATIENCE)
        finally:
            self.remove()

    def remove(self) -> None:
        """Remove the directories of an instance that does not run."""
        shutil.rmtree(self.directory)

    def _start(self, *command: str) -> None:
        with open(self.directory / "console", "ab") as console:
            self._programs.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
                )
            )

    def _state(self) -> str:
        files = [self.directory / name for name in ("console", "mail.log", "dovecot.log")]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files if file.exists())

    @property
    def log(self) -> str:
        """The mail log so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """The first place in the mail log that matches, as soon as there is one."""
        wait_for(lambda: re.search(pattern, self.log), self._state)
        found = re.search(pattern, self.log)
        assert found
        return found

    def complaints(self) -> list[str]:
        """Lines of the mail log in which Postfix complains about anything but the machine's clock."""
        return [
            line
            for line in self.log.splitlines()
            if re.search(r": (warning|error|fatal|panic): ", line) and not _CLOCK.search(line)
        ]

    def delivered(self, queue_ids: Iterable[str]) -> int:
        """Wait until the messages are delivered; the number of recipients they went to."""
        wanted = set(queue_ids)
        wait_for(lambda: wanted <= set(re.findall(r" (\w+): removed$", self.log, re.MULTILINE)), self._state)
        sent = re.findall(r"postfix/\w+\[\d+\]: (\w+): to=.* status=sent ", self.log)
        return sum(queue_id in wanted for queue_id in sent)

    def held(self) -> set[str]:
        """Queue ids of the messages in the hold queue."""
        return {path.name for path in (self.queue / "hold").rglob("*") if path.is_file()}

    def sendmail(self, sender: str, recipient: str) -> str:
        """Give a message to sendmail(1), as local programs do; its complaint if it refuses."""
        command = ["sendmail", "-C", str(self.config), "-f", sender, recipient]
        done = subprocess.run(
            command, input="Subject: test\n\ntest\n", capture_output=True, text=True, check=False
        )
        return done.stderr if done.returncode else ""

    def connect(self, service: str = "smtp", login: str = "") -> Client:
        """A session with a service, logged in if ``login`` is given, over TLS where the service wants it."""
        return Client(self.ports[service], login, wrapped=service in ("submissions", "smtps"))


class Client:
    """One SMTP session of a mail program."""

    def __init__(self, port: int, login: str, wrapped: bool) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if wrapped:
            self.smtp: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", port, timeout=PATIENCE, context=context)
        else:
            self.smtp = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
        self.smtp.ehlo("client.example.org")
        if login:
            if not wrapped:
                self.smtp.starttls(context=context)
                self.smtp.ehlo("client.example.org")
            self.smtp.login(login, PASSWORD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.smtp.close()

    def send(
        self,
        sender: str,
        *recipients: str,
        size: int = 100,
        before_end: Callable[[], object] = lambda: None,
    ) -> str:
        """Postfix's reply to one message: to the command that was refused, or to the end of the message.

        A message goes to all ``recipients`` or to none. ``before_end`` is called when the recipients were accepted.
        """
        content = b"Subject: test\r\n\r\n" + b"x" * (size - 2) + b"\r\n"

        def end() -> tuple[int, bytes]:
            before_end()
            return self.smtp.data(content)

        commands: list[Callable[[], tuple[int, bytes]]] = [functools.partial(self.smtp.mail, sender)]
        commands += [functools.partial(self.smtp.rcpt, recipient) for recipient in recipients]
        reply = ""
        for command in (*commands, end):
            code, text = command()
            reply = f"{code} {text.decode()}"
            if code >= 400:
                self.smtp.rset()
                break
        return reply


def queue_id(reply: str) -> str:
    """The queue id in the reply to an accepted message; fails if it was not accepted."""
    found = re.fullmatch(r"250 2\.0\.0 Ok: queued as (\w+)", reply)
    assert found, reply
    return found[1]


def _certificate(directory: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=mx.example.org", "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _end(group: int) -> None:
    """End the process group ``group`` and wait until nothing is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    try:
        wait_for(lambda: not _lives(group), lambda: f"processes of group {group} do not end")
    except AssertionError:
        os.killpg(group, signal.SIGKILL)
        raise


def _lives(group: int) -> bool:
    """Whether a process of ``group`` still runs; one that only waits for its parent to look does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False
