"""The life of the package on one machine, in the order in which it happens: installed, asked, upgraded, restarted, rotated,
removed, purged. On Debian 12 and on the one after it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.package.machine import ROOT, Machine
from tests.system.waiting import wait_for

SOCKET = "/var/spool/postfix/policyd/policy.sock"
#: The account of mail that comes from the machine itself.
LOCAL = "client:127.0.0.1"
PACE = 50
#: Restarts, reloads and rotations on each release; ``POLICYD_ROUNDS=100`` is the whole of it.
ROUNDS = {
    release: int(os.environ.get("POLICYD_ROUNDS", "0")) or rounds
    for release, rounds in (("bookworm", 25), ("trixie", 10))
}
#: What an admin has Postfix do here: take mail for everybody, and drop it.
POSTFIX = """
postconf -e inet_interfaces=loopback-only inet_protocols=ipv4 default_transport=discard: local_transport=discard: \
    in_flow_delay=0 maillog_file=/var/log/postfix.log myhostname=mx.example.org mydestination=example.org
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param, boot=True) as machine:
        machine.put(Path(__file__).with_name("mail.py"), "/root/mail.py")
        machine.put(Path(__file__).with_name("asks.py"), "/root/asks.py")
        yield machine


@contextmanager
def mail(machine: Machine, result: dict[str, Any]) -> Iterator[None]:
    """Mail comes in at the pace, and what became of it is in ``result`` at the end."""
    command = machine.command("python3", "/root/mail.py", str(PACE), "sender")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        try:
            yield
        finally:
            said, _ = sender.communicate("")
    result.update(json.loads(said))


def used(machine: Machine) -> int:
    """Messages of this machine's own that were counted."""
    shown = json.loads(machine.sh(f"policyctl --json quota show {LOCAL}"))["limits"]
    return int(
        next(
            limit["used"]
            for limit in shown
            if limit["unit"].startswith("recipients") and limit["window_ms"] == 86_400_000
        )
    )


def ends(machine: Machine) -> int:
    """Mails that policyd decided at their end, each once."""
    rows = machine.sh(
        'sqlite-utils query /var/lib/policyd/policyd.db --csv --no-headers "SELECT count(DISTINCT instance) FROM decision '
        "WHERE stage = 'END-OF-MESSAGE' AND instance NOT LIKE '%.asks' AND sender <> ''\""
    )
    return int(rows)


def state(machine: Machine, unit: str = "policyd.service") -> str:
    return machine.sh(f"systemctl is-active {unit}", code=None).strip()


def complaints(machine: Machine) -> str:
    """What Postfix and policyd have complained about."""
    said = machine.sh(
        "grep -E 'warning|error|fatal|panic' /var/log/postfix.log; journalctl -u policyd -p warning -o cat --no-pager",
        code=None,
    )
    # Restarts close the connections that Postfix keeps; it tries anew. Nobody answers questions about names here.
    known = "problem talking to server|dns-down|dns-up|nameserver-|dnsbl-sick|alert-failed|alert-channel-well|-- No entries --"
    return "\n".join(line for line in said.splitlines() if not re.search(known, line))


def test_it_runs_as_soon_as_it_is_installed(machine: Machine, previous: Path) -> None:
    """`apt install`, and policyd answers on its socket, which is open for Postfix and root alone; nothing of Postfix's
    configuration was touched, and nothing but bans refuses anybody."""
    said = machine.install(previous, "postfix", "logrotate")
    assert "policyd" in said
    assert state(machine) == state(machine, "policyd.socket") == "active"
    rights = machine.sh(
        f"stat -c '%a %U %G %n' {SOCKET} /var/spool/postfix/policyd /var/lib/policyd /var/log/policyd "
        "/etc/policyd/policyd.toml /var/lib/policyd/policyd.db"
    )
    assert rights.splitlines() == [
        f"660 root postfix {SOCKET}",
        "2750 policyd postfix /var/spool/postfix/policyd",
        "750 policyd policyd /var/lib/policyd",
        "2750 policyd adm /var/log/policyd",
        "640 root policyd /etc/policyd/policyd.toml",
        "640 policyd policyd /var/lib/policyd/policyd.db",
    ]
    assert machine.sh("policyctl ask user=alice@example.org recipient=bob@example.net").startswith(
        "action=DUNNO"
    )
    asked = f"import socket; socket.socket(socket.AF_UNIX).connect('{SOCKET}')"
    machine.sh(f'setpriv --reuid postfix --regid postfix --init-groups python3 -c "{asked}"')
    refused = machine.sh(
        f'setpriv --reuid nobody --regid nogroup --clear-groups python3 -c "{asked}"', code=None
    )
    assert "PermissionError" in refused
    assert "check_policy_service" not in machine.sh("postconf -n")
    checks = json.loads(machine.sh("policyctl --json check list"))
    assert {each["name"]: each["mode"] for each in checks if each["mode"] == "enforce"} == {
        "allow": "enforce",
        "bans": "enforce",
    }
    assert machine.sh("policyctl config check", code=0)


def test_postfix_asks_it(machine: Machine) -> None:
    """With the command that the documentation names, each mail is asked about and counted."""
    machine.sh(POSTFIX + "policyctl postfix enable --yes; systemctl restart postfix")
    result: dict[str, Any] = {}
    with mail(machine, result):
        wait_for(lambda: ends(machine) >= 50, lambda: machine.sh("tail /var/log/postfix.log"))
    assert result["others"] == []
    assert used(machine) == ends(machine) == result["accepted"]
    assert complaints(machine) == ""


def test_an_upgrade_refuses_no_mail(machine: Machine, package: Path) -> None:
    """Under 50 mails a second: none is refused, none is counted twice or not at all, bans hold on, the edited configuration
    stays."""
    machine.sh("policyctl ban sender mallory@example.org --reason 'ticket 4711'")
    machine.sh('sed -i \'s/^decisions = "90d"/decisions = "60d"/\' /etc/policyd/policyd.toml')
    edited = (machine.root / "etc/policyd/policyd.toml").read_text()
    pid, had = machine.sh("systemctl show -P MainPID policyd"), used(machine)
    result: dict[str, Any] = {}
    with mail(machine, result):
        before = ends(machine)
        machine.install(package)
        wait_for(
            lambda: ends(machine) > before + 50, lambda: machine.sh("journalctl -u policyd -n 20 --no-pager")
        )
    assert result["others"] == []
    assert used(machine) == had + result["accepted"]
    assert machine.sh("systemctl show -P MainPID policyd") != pid
    assert (machine.root / "etc/policyd/policyd.toml").read_text() == edited
    assert "policyd 0.1.0" in machine.sh("policyctl --version").replace("policyctl", "policyd")
    assert "action=550 " in machine.sh("policyctl ask sender=mallory@example.org recipient=bob@example.org")
    assert complaints(machine) == ""


def test_the_sandbox_denies_nothing_that_policyd_does(machine: Machine) -> None:
    """The unit as shipped, but a system call that it forbids kills: mail, DNS look-ups, commands, reload, rotation and restart
    go on all the same; and what it is to forbid it forbids."""
    machine.sh(
        "mkdir -p /run/systemd/system/policyd.service.d; "
        "printf '[Service]\\nSystemCallErrorNumber=kill\\nRestart=no\\n' >/run/systemd/system/policyd.service.d/kill.conf; "
        "systemctl daemon-reload; systemctl restart policyd"
    )
    pid = machine.sh("systemctl show -P MainPID policyd")
    # The first process of the container is the leader: this is policyd's, as it sees itself.
    status = machine.sh(f"cat /proc/{pid.strip()}/status")
    for line in ("CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    result: dict[str, Any] = {}
    had = used(machine)
    with mail(machine, result):
        before = ends(machine)
        machine.sh("systemctl reload policyd; logrotate --force /etc/logrotate.d/policyd")
        machine.sh(
            "policyctl ban sender eve@example.org; policyctl ask client=192.0.2.7 recipient=a@example.org; "
            "policyctl unban sender eve@example.org; policyctl db backup /root/backup.db"
        )
        wait_for(
            lambda: ends(machine) > before + 100, lambda: machine.sh("journalctl -u policyd -n 20 --no-pager")
        )
    assert result["others"] == []
    assert used(machine) == had + result["accepted"]
    assert machine.sh("systemctl show -P MainPID policyd") == pid
    inside = ["nsenter", f"--target={pid.strip()}", "--mount", "setpriv", "--reuid=policyd", "--clear-groups"]
    for place in ("/etc/policyd/x", "/root/x", "/home/x", "/usr/x"):
        assert "ead-only" in machine.sh(
            " ".join([*inside, "touch", place]), code=None
        ) or "denied" in machine.sh(" ".join([*inside, "touch", place]), code=None)
    machine.sh("systemctl stop policyd; systemctl show -P Result policyd | grep -x success")
    machine.sh(
        "rm -r /run/systemd/system/policyd.service.d; systemctl daemon-reload; systemctl start policyd"
    )
    assert complaints(machine) == ""


def test_an_older_database_is_upgraded_after_a_backup(machine: Machine, tmp_path: Path) -> None:
    """The service brings a database of the oldest schema up to date, with what is in it, and keeps a copy of it."""
    script = (
        "import sqlite3, sys\n"
        "from policyd.store import migrate\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "number, text = migrate.steps()[0]\n"
        "[database.execute(each) for each in migrate.statements(text)]\n"
        "database.execute(f'PRAGMA user_version = {number}')\n"
    )
    machine.sh(
        "systemctl stop policyd; mv /var/lib/policyd /var/lib/policyd.now; systemd-tmpfiles --create policyd.conf"
    )
    machine.sh(
        f"setpriv --reuid policyd --regid policyd --clear-groups python3 -c '{script}' /var/lib/policyd/policyd.db".replace(
            "'PRAGMA user_version = {number}'", '"PRAGMA user_version = {number}"'
        )
    )
    machine.sh("systemctl start policyd; policyctl ban sender old@example.org; policyctl db check")
    assert "before-schema-" in machine.sh("ls /var/lib/policyd")
    machine.sh(
        "systemctl stop policyd; rm -r /var/lib/policyd; mv /var/lib/policyd.now /var/lib/policyd; systemctl start policyd"
    )


def test_a_hundred_restarts_and_reloads_refuse_no_mail(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under 50 mails a second: no mail is refused or put off, and each is counted once. A file with errors is refused by
    `systemctl reload`, which says so."""
    rounds = ROUNDS[machine.release]
    had, result = used(machine), {}
    with mail(machine, result):
        for _ in range(rounds):
            machine.sh("systemctl restart policyd")
            machine.sh("systemctl reload policyd")
    assert result["others"] == []
    assert used(machine) == had + result["accepted"]
    # About ten of them had time to be sent between two restarts.
    assert result["accepted"] > 10 * rounds
    with capsys.disabled():
        print(
            f"\n{machine.release}: {rounds} restarts and reloads, {result['accepted']} mails, {result['seconds']} s"
        )
    machine.sh("cp /etc/policyd/policyd.toml /root/good; echo 'nonsense = 1' >>/etc/policyd/policyd.toml")
    assert "failed" in machine.sh("systemctl reload policyd", code=1)
    assert state(machine) == "active"
    machine.sh("cp /root/good /etc/policyd/policyd.toml; systemctl reload policyd")


def test_rotation_loses_no_line(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """logrotate, forced a hundred times under 1,000 decisions a second: each decision stands in exactly one file."""
    machine.sh("rm -f /var/log/policyd/*; systemctl kill -s USR1 --kill-whom=main policyd")
    machine.sh("sed 's/rotate 30/rotate 200/' /etc/logrotate.d/policyd >/root/rotate")
    rounds = ROUNDS[machine.release]
    count = 300 * rounds
    command = machine.command("python3", "/root/asks.py", SOCKET, "1000", str(count))
    turns = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asker:
        while turns < rounds:
            machine.sh("logrotate --force /root/rotate")
            turns += 1
            assert asker.poll() is None, f"it ended after {turns} rotations"
        said, _ = asker.communicate()
    result = json.loads(said)
    assert result["passed"] == count
    query = "SELECT count(*) FROM decision WHERE instance LIKE '%.asks'"
    assert machine.sh(
        f'sqlite-utils query /var/lib/policyd/policyd.db --csv --no-headers "{query}"'
    ).strip() == str(count)

    def lines() -> list[str]:
        return machine.sh(
            "zcat -f /var/log/policyd/decisions.log* | grep -o 'instance=[^ ]*asks'", code=None
        ).split()

    wait_for(
        lambda: len(lines()) >= count,
        lambda: machine.sh("ls -l /var/log/policyd; journalctl -u policyd -n 5"),
    )
    assert len(lines()) == len(set(lines())) == count
    with capsys.disabled():
        print(f"\n{machine.release}: {turns} rotations, {count} decisions in {result['seconds']} s")


def test_removing_keeps_what_is_the_admins(machine: Machine) -> None:
    """The configuration, the database and the logs; installed again, the ban holds."""
    machine.apt("remove", "policyd")
    assert state(machine) != "active"
    machine.sh(
        "test -s /var/lib/policyd/policyd.db; test -s /etc/policyd/policyd.toml; test -e /var/log/policyd/decisions.log"
    )
    machine.sh(f"test ! -e {SOCKET} -a ! -e /usr/bin/policyd")
    machine.sh("apt-get --yes install /root/policyd_0.1.0_all.deb")
    assert "action=550 " in machine.sh("policyctl ask sender=mallory@example.org recipient=bob@example.org")


def test_its_own_test_passes(machine: Machine) -> None:
    """What autopkgtest runs, on this machine."""
    machine.sh("policyctl postfix disable --yes; policyctl quota reset client:127.0.0.1")
    machine.put(ROOT / "packaging/debian/tests/with-postfix", "/root/with-postfix")
    machine.sh("/root/with-postfix")


def test_purging_leaves_nothing(machine: Machine) -> None:
    """No file with its name or of its user, no user, no unit; and Postfix goes on."""
    machine.apt("purge", "policyd")
    left = machine.sh(
        "find / -xdev \\( -name '*policyd*' -o -name '*policyctl*' -o -nouser -o -nogroup \\) "
        "-not -path '/proc/*' -not -path '/root/*' -not -path '/var/cache/apt/*' -not -path '/var/log/journal/*' -print"
    )
    assert left.split() == [path for path in left.split() if path.startswith("/etc/postfix/")]
    assert machine.sh("getent passwd policyd; getent group policyd", code=None) == ""
    assert "policyd" not in machine.sh("systemctl list-unit-files --no-pager; postconf -n; postconf -M")
    result: dict[str, Any] = {}
    with mail(machine, result):
        pass
    assert result["others"] == []


def test_in_a_chroot_without_systemd(package: Path) -> None:
    """As in an image that is being built: it installs, installs again, and is removed and purged; Postfix may come later; and
    policyd runs there by hand."""
    with Machine("bookworm", boot=False) as machine:
        machine.put(package, "/root/policyd.deb")
        machine.apt("install", "--no-install-recommends", "/root/policyd.deb")
        assert machine.sh("stat -c '%a %U %G' /var/spool/postfix/policyd").strip() == "2750 policyd postfix"
        machine.apt("install", "--no-install-recommends", "postfix")
        assert "postfix" in machine.sh("id -gn postfix")
        machine.sh(
            "setpriv --reuid policyd --regid policyd --clear-groups policyd & pid=$!; "
            f"while [ ! -S {SOCKET} ]; do kill -0 $pid; sleep 0.1; done; "
            f"stat -c '%a %U %G' {SOCKET} | grep -x '660 policyd postfix'; "
            "policyctl ask recipient=a@example.org | grep action=DUNNO; kill $pid; wait $pid"
        )
        machine.apt("reinstall", "/root/policyd.deb")
        machine.apt("remove", "policyd")
        machine.apt("purge", "policyd")
        assert (
            machine.sh("find /etc /var/lib /usr /var/spool -name '*policyd*' -not -path '/var/lib/dpkg/*'")
            == ""
        )


def test_lintian_has_nothing_to_say(package: Path) -> None:
    """About the source and the package, at its most pedantic; each override has its reason beside it."""
    (changes,) = package.parent.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--allow-root", "--pedantic", "-EvIL", "+pedantic", "--no-tag-display-limit", changes],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if not line.startswith("N:")]
    assert (said, done.returncode) == ([], 0), done.stderr
    overrides = (ROOT / "packaging/debian/policyd.lintian-overrides").read_text().splitlines()
    assert all(
        line.startswith("#") or before.startswith("#")
        for before, line in zip(["", *overrides], overrides, strict=False)
    )


def test_the_unit_is_confined(package: Path, tmp_path: Path) -> None:
    """systemd-analyze rates the exposure of the shipped unit at 1.5 or lower."""
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    unit = tmp_path / "lib/systemd/system/policyd.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True, check=True
    )
    found = re.search(r"exposure level for policyd\.service: ([0-9.]+)", done.stdout)
    assert found
    assert float(found[1]) <= 1.5
