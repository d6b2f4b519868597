"""policyctl doctor on a real Postfix and a real policyd: silent while all is well, and every planted mistake named."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.dns.server import DnsServer
from tests.ports import free_port
from tests.system.daemon import ROOT, Policyd
from tests.system.postfix import SOCKET, Postfix, queue_id, stock_master_cf
from tests.system.test_clock import WallClock
from tests.system.waiting import wait_for

POLICY = """
[site]
domains = ["example.org"]
networks = ["127.0.0.0/8", "::1/128"]
default_domain = "example.org"
[server]
listen = ["unix:{socket}"]
[dns]
nameservers = ["{nameserver}"]
timeout = "300ms"
[keep]
min_free = "1MB"
[tiers]
default = "regular"
[tier.regular]
limits = ["20 messages per 1h"]
[[check]]
use = "bans"
[[check]]
use = "quota"
for = "submission"
[[check]]
use = "dnsbl"
for = "mx"
sites = ["bl.example"]
[[check]]
use = "spf"
for = "mx"
[[check]]
use = "greylist"
for = "mx"
when = ["dnsbl >= 9"]
"""
FILTER = "10025 inet n - y - - smtpd\n  -o content_filter=\n  -o mynetworks=127.0.0.0/8\n"
NOBODY = pwd.getpwnam("nobody")
#: As the unit of the package has it: no rights, and no way to get any.
UNPRIVILEGED = (
    "setpriv",
    f"--reuid={NOBODY.pw_uid}",
    f"--regid={NOBODY.pw_gid}",
    "--clear-groups",
    "--no-new-privs",
)


#: policyctl; as root it reads the database as its owner, whom a Python in root's home does not let load anything more.
PROGRAM = "import encodings.ascii, importlib.readers, importlib.resources.readers; from policyd.cli import main; main()"


class Site(NamedTuple):
    """The whole."""

    postfix: Postfix
    policyd: Policyd
    dns: DnsServer

    def told(
        self, *words: str, wrapper: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit code and output. Whether this machine's own clock is kept is not what is tested."""
        done = subprocess.run(
            [
                *(
                    *wrapper,
                    sys.executable,
                    "-c",
                    PROGRAM,
                    "--config",
                    str(self.policyd.config),
                    "doctor",
                    *words,
                ),
                *("--postfix-config", str(self.postfix.config), "--ignore", "clock-unsynchronised"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    def doctor(self, **how: Any) -> tuple[int, Any]:
        """Exit code and findings."""
        code, told = self.told("--json", **how)
        return code, json.loads(told)["findings"]

    def key(self, service: str) -> str:
        """The service as postconf -P names it."""
        return f"127.0.0.1:{self.postfix.ports[service]}/inet"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """One that nobody may go into: pytest's own are root's."""
    path = Path(tempfile.mkdtemp(prefix="policyd-test-", dir="/tmp"))
    path.chmod(0o755)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def site(directory: Path) -> Iterator[Site]:
    postfix = Postfix("", stock_master_cf("submission", "submissions") + FILTER)
    os.chown(postfix.queue / "policyd", NOBODY.pw_uid, -1)
    (postfix.queue / "policyd").chmod(0o2750)
    with DnsServer() as dns:
        dns.add("2.0.0.127.bl.example", "A", "127.0.0.2")
        policy = POLICY.format(socket=postfix.queue / SOCKET, nameserver=dns.nameserver)
        with postfix, Policyd(directory, policy, wrapper=UNPRIVILEGED) as policyd:
            policyd.ctl("postfix", "enable", "--yes", "--postfix-config", str(postfix.config))
            with postfix.connect("submission", "alice") as client:
                queue_id(client.send("alice@example.org", "bob@remote.test"))
            yield Site(postfix, policyd, dns)


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """The files as they are now, again afterwards."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@contextmanager
def configured(site: Site, *commands: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """postconf with these options and arguments."""
    with kept(site.postfix.config / "main.cf", site.postfix.config / "master.cf"):
        for option, argument in commands:
            site.postfix.admin("postconf", option, argument, quiet=False)
        yield {}


def main(*settings: str) -> Callable[[Site], Any]:
    """A mistake in main.cf."""
    return lambda site: configured(site, *(("-e", setting) for setting in settings))


def entry(service: str, setting: str) -> Callable[[Site], Any]:
    """A mistake in master.cf."""
    return lambda site: configured(site, ("-P", f"{site.key(service)}/{setting}"))


def policy(
    *changes: tuple[str, str], more: str = "", postfix: tuple[tuple[str, str], ...] = ()
) -> Callable[[Site], Any]:
    """A mistake in policyd.toml."""

    @contextmanager
    def planted(site: Site) -> Iterator[dict[str, Any]]:
        with kept(site.policyd.config), configured(site, *postfix):
            text = site.policyd.config.read_text()
            for old, new in changes:
                assert old in text
                text = text.replace(old, new)
            site.policyd.config.write_text(text + more)
            # What is planted is in the file; the daemon goes on with what it has.
            yield {"ignoring": {"config-not-loaded"}}

    return planted


def logged(*lines: str) -> Callable[[Site], Any]:
    """Lines in the mail log, written now."""

    @contextmanager
    def planted(site: Site) -> Iterator[dict[str, Any]]:
        with kept(site.postfix.log_file):
            with site.postfix.log_file.open("a") as log:
                log.writelines(f"{time.strftime('%b %e %H:%M:%S')} mx {line}\n" for line in lines)
            yield {}

    return planted


@contextmanager
def rights(path: Path, mode: int) -> Iterator[dict[str, Any]]:
    before = path.stat().st_mode & 0o7777
    path.chmod(mode)
    yield {}
    path.chmod(before)


@contextmanager
def socket_gone(site: Site) -> Iterator[dict[str, Any]]:
    path = site.postfix.queue / SOCKET
    # It would open the socket anew within some seconds.
    site.policyd.signal(signal.SIGSTOP)
    path.rename(path.with_suffix(".away"))
    try:
        yield {}
    finally:
        path.with_suffix(".away").rename(path)
        site.policyd.signal(signal.SIGCONT)


@contextmanager
def dns(site: Site, **behaviour: Any) -> Iterator[dict[str, Any]]:
    site.dns.behave("invalid", **behaviour)
    yield {}
    site.dns.behave("invalid")


@contextmanager
def rewriting(site: Site) -> Iterator[dict[str, Any]]:
    site.dns.add("*.invalid", "A", "203.0.113.1")
    yield {}
    site.dns.remove("*.invalid")


@contextmanager
def public_resolver(site: Site) -> Iterator[dict[str, Any]]:
    # In a network of its own, so that nobody is really asked.
    with policy((f'nameservers = ["{site.dns.nameserver}"]', 'nameservers = ["8.8.8.8"]'))(site):
        yield {"wrapper": ("unshare", "-n"), "ignoring": {"resolver-silent"}}


@contextmanager
def clock_ahead(site: Site) -> Iterator[dict[str, Any]]:
    clock = WallClock(site.policyd.directory)
    clock.step(3600)
    # The false clock does not let Python wait for another program, such as postconf, for a time; and without Postfix's
    # settings nobody knows whether they close what its version leaves open.
    yield {"environment": clock.environment, "ignoring": {"unseen", "known-hole"}}


@contextmanager
def stopped(site: Site) -> Iterator[dict[str, Any]]:
    site.policyd.stop()
    try:
        yield {}
    finally:
        site.policyd.start()


@contextmanager
def damaged(site: Site) -> Iterator[dict[str, Any]]:
    database = site.policyd.database
    with stopped(site), kept(database):
        content = bytearray(database.read_bytes())
        content[4096 * 3 : 4096 * 6] = b"\xaa" * 4096 * 3
        database.write_bytes(content)
        yield {"ignoring": {"not-running"}}


READER = """\
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM history").fetchone()
print("reads", flush=True)
sys.stdin.read()
"""


@contextmanager
def long_wal(site: Site) -> Iterator[dict[str, Any]]:
    reader = subprocess.Popen(
        [
            *(sys.executable, "-c", READER, str(site.policyd.database)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    wal = Path(f"{site.policyd.database}-wal")
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        # What a reader of weeks would come to; SQLite takes no notice of what lies behind the last commit.
        os.truncate(wal, 300 * 1024 * 1024)
        yield {}
    finally:
        reader.communicate(b"")
    # Once nobody reads the daemon gives the room back.
    wait_for(lambda: wal.stat().st_size < 256 * 1024 * 1024, lambda: str(wal.stat()))


@contextmanager
def no_backup(site: Site) -> Iterator[dict[str, Any]]:
    # A change of some weeks ago.
    old = (time.time() - 30 * 86400) * 1000
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30); "
        "c.execute('INSERT INTO history (at, wall_at, author, action, subject, detail, reason) "
        "VALUES (1, ?, ?, ?, ?, ?, ?)', (int(float(sys.argv[2])), 'root', 'ban', 'x', '', '')) "
        "if sys.argv[2] != '0' else c.execute('DELETE FROM history WHERE at = 1'); c.commit()"
    )
    subprocess.run([sys.executable, "-c", script, site.policyd.database, str(old)], check=True)
    yield {}
    subprocess.run([sys.executable, "-c", script, site.policyd.database, "0"], check=True)


@contextmanager
def old_library(site: Site) -> Iterator[dict[str, Any]]:
    directory = site.policyd.directory / "old" / "dnspython-2.3.0.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nName: dnspython\nVersion: 2.3.0\n")
    yield {"environment": {"PYTHONPATH": f"{directory.parent}:{ROOT}"}}
    shutil.rmtree(directory.parent)


@contextmanager
def as_root(site: Site) -> Iterator[dict[str, Any]]:
    wrapper = site.policyd._wrapper
    with stopped(site):
        site.policyd._wrapper = []
    yield {}
    with stopped(site):
        site.policyd._wrapper = wrapper
        # What root made is the user's again.
        for path in (*site.policyd.directory.iterdir(), site.postfix.queue / SOCKET):
            if path.exists():
                os.chown(path, NOBODY.pw_uid, -1)


@contextmanager
def without_new_privileges(site: Site) -> Iterator[dict[str, Any]]:
    wrapper = site.policyd._wrapper
    with stopped(site):
        site.policyd._wrapper = [word for word in wrapper if word != "--no-new-privs"]
    yield {}
    with stopped(site):
        site.policyd._wrapper = wrapper


@contextmanager
def over_tcp(site: Site, asks: str) -> Iterator[dict[str, Any]]:
    """policyd on a port, and Postfix asking ``asks``."""
    port = free_port()
    text = site.policyd.config.read_text()
    service = f"check_policy_service {{ inet:{asks}:{port}, timeout=10s, default_action=DUNNO }}"
    with (
        kept(site.policyd.config),
        configured(site, ("-e", f"policyd_mx = {service}"), ("-e", f"policyd_submission = {service}")),
    ):
        with stopped(site):
            site.policyd.config.write_text(
                text.replace(f"unix:{site.postfix.queue / SOCKET}", f"inet:127.0.0.1:{port}")
            )
        yield {"ignoring": {"tcp"} if ":" in asks else set()}
        site.policyd.stop()
    site.policyd.start()


@contextmanager
def postscreen(site: Site) -> Iterator[dict[str, Any]]:
    port = free_port()
    with configured(
        site,
        ("-e", "postscreen_dnsbl_sites = bl.example*2"),
        ("-e", "postscreen_dnsbl_action = enforce"),
        ("-Me", f"127.0.0.1:{port}/inet=127.0.0.1:{port} inet n - y - 1 postscreen"),
    ):
        yield {}


POLICYD = "check_policy_service { unix:policyd/policy.sock, timeout=10s, default_action=DUNNO }"
RECIPIENT, END = "smtpd_recipient_restrictions", "smtpd_end_of_data_restrictions"

#: The finding that must name it, and the mistake.
MISTAKES: list[tuple[str, Callable[[Site], Any]]] = [
    ("wrong-list", main(f"smtpd_sender_restrictions = {POLICYD}")),
    ("hidden", main(f"{RECIPIENT} = permit_mynetworks, $policyd_mx")),
    ("hidden", main("mua_recipient_restrictions = permit_sasl_authenticated, $policyd_submission, reject")),
    ("listed-twice", main(f"{RECIPIENT} = $policyd_mx, reject_unauth_destination, {POLICYD}")),
    ("submission-overrides", entry("submission", f"{RECIPIENT}=permit_sasl_authenticated,reject")),
    ("not-asked-end", entry("submissions", f"{END}=")),
    ("not-asked-end", main(f"{END} =")),
    ("not-asked-rcpt", main(f"{RECIPIENT} = reject_unauth_destination")),
    ("not-asked", main(f"{RECIPIENT} = reject_unauth_destination", f"{END} =")),
    ("before-relay-check", main("smtpd_relay_restrictions =")),
    ("reinjection-asked", entry("10025", f"{END}=$policyd_mx")),
    (
        "hold-with-proxy-filter",
        policy(
            ('use = "quota"\n', 'use = "quota"\non_breach = "hold"\n'),
            postfix=(("-e", "smtpd_proxy_filter = 127.0.0.1:10024"),),
        ),
    ),
    (
        "outside-chroot",
        lambda site: configured(
            site,
            ("-e", f"policyd_mx = {POLICYD}".replace("unix:policyd", f"unix:{site.postfix.queue}/policyd")),
        ),
    ),
    ("wrong-address", main(f"policyd_mx = {POLICYD}".replace("unix:policyd", "unix:private/policyd"))),
    ("timeout-short", main(f"policyd_mx = {POLICYD}".replace("10s", "2s"))),
    ("timeout-long", main(f"policyd_mx = {POLICYD}".replace("timeout=10s, ", ""))),
    ("default-action", main(f"policyd_mx = {POLICYD}".replace(", default_action=DUNNO", ""))),
    ("idle", main("smtpd_policy_service_max_idle = 2h", "smtpd_policy_service_max_ttl = 3h")),
    ("one-try", main("smtpd_policy_service_try_limit = 1")),
    ("undefined-parameter", main(f"{RECIPIENT} = $policyd_mx, $our_list")),
    ("world-writable", lambda site: rights(site.postfix.queue / SOCKET, 0o666)),
    ("closed-to-postfix", lambda site: rights(site.postfix.queue / "policyd", 0o700)),
    ("socket-missing", socket_gone),
    ("address-family", lambda site: over_tcp(site, "[::1]")),
    ("tcp", lambda site: over_tcp(site, "127.0.0.1")),
    ("not-running", stopped),
    ("config-refused", policy(more='\n[servr]\nlisten = "x"\n')),
    ("resolver-public", public_resolver),
    ("resolver-silent", lambda site: dns(site, silent=True)),
    ("resolver-silent", lambda site: dns(site, rcode="REFUSED")),
    ("resolver-rewrites", rewriting),
    ("clock-off", clock_ahead),
    ("disk-full", policy(('min_free = "1MB"', 'min_free = "900000GB"'))),
    ("database-damaged", damaged),
    ("database-large", policy(('min_free = "1MB"', 'min_free = "1MB"\nmax_size = "1KB"'))),
    ("wal-large", long_wal),
    ("no-backup", no_backup),
    ("known-hole", old_library),
    ("runs-as-root", as_root),
    ("sandbox", without_new_privileges),
    ("pickup", logged(*(f"postfix/pickup[7]: 4D{number}: uid=33 from=<www-data>" for number in range(12)))),
    (
        "cannot-ask",
        logged(
            "postfix/smtpd[7]: warning: problem talking to server policyd/policy.sock: Connection refused"
        ),
    ),
    ("postgrey", main(f"{RECIPIENT} = $policyd_mx, check_policy_service inet:127.0.0.1:10023")),
    ("policyd-spf", main(f"{RECIPIENT} = $policyd_mx, check_policy_service unix:private/policyd-spf")),
    ("other-limits", main(f"{RECIPIENT} = $policyd_mx, check_policy_service unix:ratelimit/policy")),
    ("rbl-in-postfix", main(f"{RECIPIENT} = reject_rbl_client bl.example, $policyd_mx")),
    ("rspamd", main("smtpd_milters = inet:localhost:11332")),
    ("postscreen", postscreen),
]


def test_a_sound_installation_is_silent(site: Site) -> None:
    """What policyctl postfix enable leaves, with a daemon that runs as its unit has it: one line, exit code 0."""
    assert site.doctor() == (0, [])
    assert site.told() == (0, "POLICYD OK: sound\n")


@pytest.mark.parametrize(
    ("name", "plant"), MISTAKES, ids=[f"{at}-{name}" for at, (name, _) in enumerate(MISTAKES)]
)
def test_a_planted_mistake_is_named(site: Site, name: str, plant: Callable[[Site], Any]) -> None:
    """Named, with its mend and an exit code, and nothing else: what was planted before is sound again."""
    with plant(site) as how:
        beside = how.pop("ignoring", set())
        code, found = site.doctor(**how)
        assert {finding["name"] for finding in found} - beside == {name}, found
        assert code == {"critical": 2, "warning": 1}[found[0]["level"]]
        assert all(finding["mend"] for finding in found)


def test_there_are_enough_mistakes() -> None:
    """The bar is 25 different ones."""
    assert len({name for name, _ in MISTAKES}) >= 25


def test_all_is_sound_again(site: Site) -> None:
    """The last mistake is gone, too."""
    assert site.doctor() == (0, [])


def test_counts_of_local_mail_and_the_mend_that_works(site: Site) -> None:
    """The finding says who and how often; the command that it gives, typed, makes doctor silent."""
    lines = [f"postfix/pickup[7]: 4D{number}: uid=33 from=<www-data>" for number in range(12)]
    with logged(*lines)(site):
        (finding,) = site.doctor()[1]
        assert "12 by www-data (uid 33)" in finding["what"]
    with main(f"smtpd_sender_restrictions = {POLICYD}, reject_non_fqdn_sender")(site):
        (finding,) = site.doctor()[1]
        site.postfix.admin("sh", "-c", finding["mend"])
        assert site.doctor() == (0, [])
        assert (
            site.postfix.admin("postconf", "-h", "smtpd_sender_restrictions").strip()
            == "reject_non_fqdn_sender"
        )
    wiring = site.postfix.config / "policyd-wiring.json"
    with main(f"{RECIPIENT} = permit_mynetworks, $policyd_mx", f"{END} =")(site), kept(wiring):
        site.policyd.ctl("postfix", "enable", "--yes", "--postfix-config", str(site.postfix.config))
        assert site.doctor() == (0, [])
