"""Rules about policyd's own end: does it run and listen, who may ask it, and with what rights it runs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from policyd.descriptors import for_connections
from policyd.doctor.facts import CRITICAL, WARNING, Facts, Finding


def not_running(facts: Facts) -> Iterator[Finding]:
    """Nobody holds the daemon's lock."""
    if facts.running is False:
        yield Finding(
            "not-running",
            CRITICAL,
            "policyd does not run",
            "Postfix answers by default_action: nothing is limited, or submission waits",
            "systemctl start policyd; 'journalctl -u policyd' says why it ended",
        )


def config_refused(facts: Facts) -> Iterator[Finding]:
    """A file that policyd would not start with."""
    if facts.config_problem:
        yield Finding(
            "config-refused",
            CRITICAL,
            facts.config_problem,
            "policyd goes on with what it has, and would not start again",
            "policyctl config check tells each error with its place",
        )


def config_not_loaded(facts: Facts) -> Iterator[Finding]:
    """A file that was changed and not taken over."""
    if facts.config is None or facts.asked is None or not facts.running or not facts.asked.in_force:
        return
    if facts.config_problem:
        # It is said of the file already, and it has no policy that could be compared.
        return
    if facts.asked.in_force != facts.config.policy_version:
        yield Finding(
            "config-not-loaded",
            WARNING,
            f"the file says policy {facts.config.policy_version}, and policyd decides by {facts.asked.in_force}",
            "what was changed in the file does not hold yet",
            "systemctl reload policyd",
        )


def socket_missing(facts: Facts) -> Iterator[Finding]:
    """A listener that is not there, or that nobody serves."""
    if not facts.running:
        return
    for each in facts.sockets:
        path = each.address.partition(":")[2]
        if each.address.startswith("unix:") and not (each.exists and each.is_socket):
            yield Finding(
                "socket-missing",
                CRITICAL,
                f"{path} is {'no socket' if each.exists else 'not there'}",
                "policyd listens where nobody finds it: something removed or replaced its socket",
                "systemctl restart policyd.socket policyd",
            )
        elif each.answers is False:
            yield Finding(
                "socket-missing",
                CRITICAL,
                f"nobody takes connections at {each.address}",
                "Postfix cannot ask there, and default_action holds",
                "systemctl restart policyd",
            )


def world_writable(facts: Facts) -> Iterator[Finding]:
    """A socket that everybody may connect to."""
    for each in facts.sockets:
        if each.address.startswith("unix:") and each.exists and each.mode & 0o002:
            path = each.address.partition(":")[2]
            yield Finding(
                "world-writable",
                CRITICAL,
                f"{path} has the mode {each.mode:04o}: every user of this machine may connect",
                "whoever connects can claim any login, use up its limits, and have it suspended",
                f'mode = "0660" of the listener in policyd.toml (SocketMode=0660 in policyd.socket); '
                f"now: chmod 0660 {shlex.quote(path)}",
            )


def closed_to_postfix(facts: Facts) -> Iterator[Finding]:
    """A socket that Postfix's user cannot reach."""
    for each in facts.sockets:
        if not each.exists or not each.closed_at:
            continue
        path = each.address.partition(":")[2]
        directory = os.path.dirname(path)
        mend = (
            f"chgrp postfix {shlex.quote(path)}; chmod 0660 {shlex.quote(path)}"
            if each.closed_at == path
            else f"install -d -o policyd -g postfix -m 2750 {shlex.quote(directory)}; systemctl restart policyd"
        )
        yield Finding(
            "closed-to-postfix",
            CRITICAL,
            f"user postfix may not go through {each.closed_at} to {path}"
            if each.closed_at != path
            else f"user postfix may not connect to {path}: {each.mode:04o} {each.owner}:{each.group}",
            "every request fails with 'Permission denied' in the mail log, and default_action holds",
            mend,
        )


def tcp(facts: Facts) -> Iterator[Finding]:
    """A port that every local program can use."""
    ports = [address for address, _ in facts.listeners if address.startswith("inet:")]
    if ports:
        queue = facts.postfix.queue_directory if facts.postfix else "/var/spool/postfix"
        yield Finding(
            "tcp",
            WARNING,
            f"policyd listens at {', '.join(ports)}",
            "every program of this machine can connect there and claim any login; a UNIX socket is for Postfix alone",
            f'listen = ["unix:{queue}/policyd/policy.sock"] in [server] of policyd.toml, then policyctl postfix enable',
        )


def privileges(facts: Facts) -> Iterator[Finding]:
    """A daemon that could do more than it has to."""
    process = facts.process
    if process is None:
        return
    if process.uid == 0:
        yield Finding(
            "runs-as-root",
            CRITICAL,
            f"policyd, pid {process.pid}, runs as root",
            "a mistake in it, or in a library, would be a mistake with all rights",
            "start it by its unit: systemctl enable --now policyd",
        )
    elif process.capabilities or not process.no_new_privileges:
        what = f"capabilities {process.capabilities:#x}" if process.capabilities else "no NoNewPrivileges"
        yield Finding(
            "sandbox",
            WARNING,
            f"policyd, pid {process.pid}, runs with {what}, so not in the sandbox of its unit",
            "what would break in could go on from there",
            "start it by its unit (systemctl enable --now policyd); 'systemd-analyze security policyd' should say 1.5 or less",
        )
    most = facts.config.server.max_connections if facts.config is not None else 0
    if most and for_connections(process.files) < most:
        yield Finding(
            "few-descriptors",
            WARNING,
            f"policyd may open {process.files} files, and max_connections is {most}",
            "a quarter of them is for questions to the DNS, some for database and logs: it closes connections before that many",
            f"LimitNOFILE={2 * most + 1_000} in its unit (systemctl edit policyd)",
        )


RULES = (
    not_running,
    config_refused,
    config_not_loaded,
    socket_missing,
    world_writable,
    closed_to_postfix,
    tcp,
    privileges,
)
