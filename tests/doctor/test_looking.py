"""What the doctor reads of a machine: the mail log, rights along a path, nameservers, versions of Debian's packages."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.checks import options_of
from policyd.config import load
from policyd.doctor import (
    look_clock,
    look_database,
    look_disks,
    look_maillog,
    look_nameservers,
    look_process,
    look_sockets,
)
from policyd.doctor.facts import MailLog
from policyd.doctor.holes import older_debian
from policyd.match import NetworkSet, parse_network
from policyd.store.clock import wall
from policyd.store.health import write_health
from policyd.units import DAY
from tests.dns.server import DnsServer
from tests.sample_database import Sample

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def test_pickup_is_counted_by_user_in_both_forms_of_the_log() -> None:
    """Traditional and ISO times; only the last day, over New Year; other programs' lines are none."""
    lines = [
        "Jan  1 11:00:00 mx postfix/pickup[1]: 4AB1: uid=33 from=<www-data>",
        "2026-01-01T03:00:00.123+00:00 mx postfix/pickup[1]: 4AB2: uid=33 from=<x@y>",
        "Dec 31 13:00:00 mx postfix-out/pickup[1]: 4AB3: uid=0 from=<root>",
        "Dec 30 13:00:00 mx postfix/pickup[1]: 4AB4: uid=33 from=<too-old>",
        "Jan  1 11:59:00 mx postfix/smtpd[1]: warning: problem talking to server policyd/policy.sock: Success",
        "Jan  1 10:00:00 mx postfix/smtpd[1]: warning: problem talking to server policyd/policy.sock: Success",
        "Jan  1 11:59:00 mx postfix/smtpd[1]: warning: problem talking to server 127.0.0.1:10023: Success",
        "Feb 30 99:00:00 mx postfix/pickup[1]: 4AB5: uid=99999999999 from=<no time>",
    ]
    found = look_maillog.read("log", lines, ["unix:policyd/policy.sock"], NOW)
    assert {uid: count for (uid, _), count in found.pickup.items()} == {33: 2, 0: 1, 99999999999: 1}
    assert found.failures == 1


@given(st.lists(st.text(max_size=60), max_size=10))
def test_no_line_of_a_log_is_too_odd(lines: list[str]) -> None:
    """A log is full of what strangers wrote."""
    assert look_maillog.read("log", lines, ["unix:x"], NOW) == MailLog("log", {}, 0)


@pytest.fixture
def path() -> Iterator[Path]:
    """pytest's own directories are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="policyd-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("directory_mode", "mode", "closed"),
    [(0o755, 0o666, ""), (0o755, 0o660, "policy.sock"), (0o700, 0o666, "policyd"), (0o711, 0o662, "")],
)
def test_who_keeps_a_user_out_is_named(path: Path, directory_mode: int, mode: int, closed: str) -> None:
    """The directory that cannot be entered, or the socket itself; by its owner it is all open."""
    directory = path / "policyd"
    directory.mkdir()
    (directory / "policy.sock").touch()
    (directory / "policy.sock").chmod(mode)
    directory.chmod(directory_mode)
    found = look_sockets._closed_at(str(directory / "policy.sock"), "nobody")
    assert os.path.basename(found) == closed
    assert look_sockets._closed_at(str(directory / "policy.sock"), pwd.getpwuid(os.getuid()).pw_name) == ""
    assert look_sockets._closed_at(str(directory / "policy.sock"), "no-such-user") == ""


def test_nameservers_that_answer_are_silent_refuse_or_lie() -> None:
    """Each is found out with one name that cannot exist; two tries for who says nothing."""
    own = NetworkSet([parse_network("127.0.0.0/8")])

    def look(dns: DnsServer) -> tuple[str, str]:
        (found,) = look_nameservers.look([dns.nameserver], 0.2, own)
        return found.state, found.rewrites_to

    with DnsServer() as dns:
        assert look(dns) == ("answers", "")
        dns.behave(rcode="REFUSED")
        assert look(dns) == ("refuses", "")
        dns.behave(silent=True)
        assert look(dns) == ("silent", "")
        dns.behave()
        dns.add("*.invalid", "A", "203.0.113.9")
        assert look(dns) == ("answers", "203.0.113.9")
    assert look_nameservers._foreign("8.8.8.8", own)
    assert not look_nameservers._foreign("8.8.8.8", NetworkSet([parse_network("8.8.8.0/24")]))
    assert not look_nameservers._foreign("10.1.2.3", own)


def test_this_machine_can_be_looked_at() -> None:
    """The clock, a disk, our own process and the libraries: what is there is found."""
    assert look_clock.synchronised() in (True, False, None)
    (disk,) = look_disks.look([("/", "all", 1), ("/", "more", 2), ("/no/such/place", "x", 1)])
    assert (disk.what, disk.needed) == ("all and more", 2)
    assert disk.free > 0
    process = look_process.process(os.getpid())
    assert process is not None
    assert process.uid == os.geteuid()
    assert process.files > 0
    assert look_process.process(2**30) is None
    assert {each.name for each in look_process.software("3.7.11")} == {"postfix", "twisted", "dnspython"}


VERSION = st.from_regex(
    r"[0-9]{1,2}(\.[0-9a-z~+]{1,3}){0,3}(-[0-9]{1,2}(\+deb[0-9]{1,2}u[0-9])?)?", fullmatch=True
)


@settings(max_examples=15)
@given(VERSION, VERSION)
def test_versions_compare_as_dpkg_compares_them(one: str, other: str) -> None:
    """A package that Debian mended is newer than the one before, whatever its upstream version says."""
    told = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], capture_output=True, check=False)
    assert older_debian(one, other) == (told.returncode == 0)


def test_versions_that_matter() -> None:
    """The two that the package depends on, before and with Debian's mends."""
    assert older_debian("2.3.0-1", "2.3.0-1+deb12u1")
    assert not older_debian("2.3.0-1+deb12u1", "2.3.0-1+deb12u1")
    assert older_debian("22.4.0-4", "22.4.0-4+deb12u1")
    assert not older_debian("24.11.0-1", "22.4.0-4+deb12u1")
    assert older_debian("1:1.0~rc1-1", "1:1.0-1")


def test_refused_mail_misses_no_stage(tmp_path: Path) -> None:
    """What is refused at RCPT does not come to END-OF-MESSAGE; the doctor sends nobody to main.cf for it."""
    (tmp_path / "policyd.toml").write_text(
        '[tiers]\ndefault = "a"\n[tier.a]\nlimits = ["1 messages per 1h"]\n[[check]]\nuse = "quota"\nfor = "submission"\n'
    )
    config = load(tmp_path / "policyd.toml", options_of)
    assert not look_database.missing(config, {("submission", "RCPT"): 120}, {"submission": 30})
    assert look_database.missing(config, {("submission", "RCPT"): 130}, {"submission": 30})
    with contextlib.closing(Sample(tmp_path / "policyd.db")) as sample:
        for _ in range(7):
            sample.ask()
        assert look_database.asked(sample.connection).refusals == {"submission": 2}


def test_the_policy_in_force_is_the_one_that_the_daemon_names(tmp_path: Path) -> None:
    """Right after a reload no decision was made by the new policy yet, and long after a change that nobody loaded many were by
    the old one: only the daemon knows by which it decides."""
    with contextlib.closing(Sample(tmp_path / "policyd.db")) as sample:
        sample.ask()
        assert look_database.asked(sample.connection).in_force == ""
        write_health(sample.connection, [("policy", "0123abcd", wall(), {})], wall())
        assert look_database.asked(sample.connection).in_force == "0123abcd"
        write_health(sample.connection, [("policy", "0123abcd", wall(), {})], wall() - DAY)
        assert look_database.asked(sample.connection).in_force == ""
