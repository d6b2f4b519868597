"""Each rule of the doctor: planted facts, and the finding that names them; sound facts, and silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from policyd.doctor.facts import EXIT_CODES, Clock, Disk, Facts, MailLog, Nameserver, Software
from policyd.doctor.judge import RULES, exit_code, judge, summary
from policyd.postfix.settings import END_OF_DATA, RECIPIENT
from policyd.units import DAY
from tests.doctor.planted import CONFIG, NOW, but, config, edited, names, sound, wired
from tests.postfix.made import QUEUE, SUBMISSION, settings

SERVICE = "check_policy_service { unix:policyd/policy.sock, timeout=10s, default_action=DUNNO }"
SOCKET = f"unix:{QUEUE}/policyd/policy.sock"


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return sound(tmp_path)


def test_a_sound_installation_is_told_in_one_line(facts: Facts) -> None:
    """Nothing to say is said as a monitoring system wants it."""
    assert judge(facts) == []
    assert (summary([]), exit_code([])) == ("POLICYD OK: sound", 0)
    assert judge(Facts()) == [], "and what was not looked at is not judged"


def with_postfix(
    main: dict[str, str] | None = None, services: dict[str, dict[str, str]] | None = None
) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, postfix=edited(wired(), main, services))


def with_other(address: str) -> Callable[[Facts], Facts]:
    return with_postfix({RECIPIENT: f"check_policy_service {address}, $policyd_mx"})


def with_policy(old: str, new: str) -> Callable[[Facts], Facts]:
    def plant(facts: Facts) -> Facts:
        assert facts.config is not None
        assert old in CONFIG
        return replace(facts, config=config(Path(facts.config.path).parent, CONFIG.replace(old, new)))

    return plant


def both(one: Callable[[Facts], Facts], other: Callable[[Facts], Facts]) -> Callable[[Facts], Facts]:
    return lambda facts: other(one(facts))


def beside(**commands: str) -> Callable[[Facts], Facts]:
    def plant(facts: Facts) -> Facts:
        assert facts.postfix is not None
        services = {name.replace("_", "/"): command for name, command in commands.items()}
        return replace(facts, postfix=replace(facts.postfix, commands={**facts.postfix.commands, **services}))

    return plant


POSTSCREEN = both(
    with_postfix(
        {"postscreen_dnsbl_sites": "zen.example*2 other.example", "postscreen_dnsbl_action": "enforce"}
    ),
    beside(smtp_inet="postscreen"),
)

#: What is planted, the finding that must name it, and a word of its mend.
PLANTED: list[tuple[str, Callable[[Facts], Facts], str]] = [
    # --- policyd's own end
    ("not-running", lambda facts: replace(facts, running=False), "systemctl start policyd"),
    (
        "config-refused",
        lambda facts: replace(facts, config_problem="policyd.toml:3: x: is no key"),
        "config check",
    ),
    (
        "config-not-loaded",
        lambda facts: but(facts, "asked", in_force="00000000"),
        "systemctl reload policyd",
    ),
    (
        "socket-missing",
        lambda facts: replace(facts, sockets=(replace(facts.sockets[0], exists=False),)),
        "restart policyd",
    ),
    (
        "socket-missing",
        lambda facts: replace(facts, sockets=(replace(facts.sockets[0], answers=False),)),
        "restart policyd",
    ),
    (
        "world-writable",
        lambda facts: replace(facts, sockets=(replace(facts.sockets[0], mode=0o666),)),
        "chmod 0660",
    ),
    (
        "closed-to-postfix",
        lambda facts: replace(facts, sockets=(replace(facts.sockets[0], closed_at=f"{QUEUE}/policyd"),)),
        "install -d -o policyd -g postfix -m 2750",
    ),
    (
        "closed-to-postfix",
        lambda facts: replace(
            facts, sockets=(replace(facts.sockets[0], closed_at=SOCKET.removeprefix("unix:")),)
        ),
        "chgrp postfix",
    ),
    (
        "tcp",
        lambda facts: replace(facts, listeners=(*facts.listeners, ("inet:127.0.0.1:10047", ""))),
        "unix:",
    ),
    ("runs-as-root", lambda facts: but(facts, "process", uid=0), "systemctl enable --now policyd"),
    ("sandbox", lambda facts: but(facts, "process", capabilities=0x400), "systemctl enable --now policyd"),
    (
        "sandbox",
        lambda facts: but(facts, "process", no_new_privileges=False),
        "systemctl enable --now policyd",
    ),
    ("few-descriptors", lambda facts: but(facts, "process", files=2500), "LimitNOFILE=5000"),
    # --- the lists
    (
        "wrong-list",
        with_postfix({"smtpd_sender_restrictions": f"reject_x, {SERVICE}"}),
        "smtpd_sender_restrictions = reject_x",
    ),
    ("wrong-list", with_postfix({"smtpd_data_restrictions": "$policyd_mx"}), "smtpd_data_restrictions = "),
    ("hidden", with_postfix({RECIPIENT: "permit_mynetworks, $policyd_mx"}), "policyctl postfix enable"),
    (
        "hidden",
        with_postfix(
            {"mua_recipient_restrictions": "permit_sasl_authenticated, $policyd_submission, reject"}
        ),
        "policyctl postfix enable",
    ),
    ("listed-twice", with_postfix({END_OF_DATA: "$policyd_mx, $policyd_mx"}), "policyctl postfix enable"),
    (
        "submission-overrides",
        with_postfix({}, {"submission": {RECIPIENT: "permit_sasl_authenticated,reject"}}),
        "policyctl postfix enable",
    ),
    (
        "not-asked",
        lambda facts: replace(facts, postfix=settings({}, {"smtp": {}})),
        "policyctl postfix enable",
    ),
    ("not-asked-rcpt", with_postfix({RECIPIENT: "reject_unauth_destination"}), "policyctl postfix enable"),
    ("not-asked-end", with_postfix({END_OF_DATA: ""}), "policyctl postfix enable"),
    ("not-asked-end", with_postfix({}, {"submissions": {END_OF_DATA: ""}}), "policyctl postfix enable"),
    ("before-relay-check", with_postfix({"smtpd_relay_restrictions": ""}), "defer_unauth_destination"),
    (
        "reinjection-asked",
        with_postfix({}, {"127.0.0.1:10025": {END_OF_DATA: "$policyd_mx"}}),
        "policyctl postfix enable",
    ),
    (
        "hold-with-proxy-filter",
        both(
            with_policy('for = "submission"', 'for = "submission"\non_breach = "hold"'),
            with_postfix({"smtpd_proxy_filter": "127.0.0.1:10024"}),
        ),
        "on_breach",
    ),
    (
        "undefined-parameter",
        lambda facts: but(
            facts, "postfix", complaints=("postconf: warning: main.cf: undefined parameter: mua_x",)
        ),
        "policyctl postfix enable",
    ),
    # --- how Postfix asks
    (
        "outside-chroot",
        with_postfix(
            {"policyd_mx": f"check_policy_service {{ {SOCKET}, timeout=10s, default_action=DUNNO }}"}
        ),
        "unix:policyd/policy.sock in place of",
    ),
    (
        "wrong-address",
        with_postfix(
            {
                "policyd_mx": "check_policy_service { unix:other/policyd/policy.sock, timeout=10s, default_action=DUNNO }"
            }
        ),
        "unix:policyd/policy.sock in place of",
    ),
    ("timeout-short", with_postfix({"policyd_mx": SERVICE.replace("10s", "3s")}), "timeout=10s"),
    ("timeout-long", with_postfix({"policyd_mx": SERVICE.replace(" timeout=10s,", "")}), "timeout=10s"),
    (
        "default-action",
        with_postfix({"policyd_mx": SERVICE.replace(", default_action=DUNNO", "")}),
        "default_action=DUNNO",
    ),
    (
        "idle",
        with_postfix({"smtpd_policy_service_max_idle": "2h", "smtpd_policy_service_max_ttl": "3h"}),
        "max_idle = 300s",
    ),
    ("one-try", with_postfix({"smtpd_policy_service_try_limit": "1"}), "try_limit = 2"),
    # --- mail
    ("nothing-asked", lambda facts: but(facts, "asked", newest=NOW - 3 * DAY), "policyctl postfix show"),
    (
        "stage-missing",
        lambda facts: but(
            facts, "asked", missing=("stage-missing: check quota needs RCPT, and none was; add it",)
        ),
        "add it",
    ),
    (
        "pickup",
        lambda facts: replace(
            facts, log=MailLog("/var/log/mail.log", {(33, "www-data"): 412, (0, "root"): 2})
        ),
        "authorized_submit_users = !www-data",
    ),
    ("cannot-ask", lambda facts: but(facts, "log", failures=7), "problem talking to server"),
    # --- beside it
    ("postgrey", with_other("inet:127.0.0.1:10023"), "disable --now postgrey"),
    ("policyd-spf", with_other("unix:private/policyd-spf"), "policyctl check off spf"),
    ("other-limits", with_other("unix:ratelimit/policy"), "policyctl import"),
    ("other-limits", with_other("{ inet:127.0.0.1:10031, timeout=5s }"), "policyctl import"),
    ("postscreen", POSTSCREEN, "postscreen_dnsbl_action = ignore"),
    (
        "rbl-in-postfix",
        with_postfix({RECIPIENT: "reject_rbl_client zen.example, $policyd_mx"}),
        "reject_rbl_client zen.example",
    ),
    ("rspamd", with_postfix({"smtpd_milters": "inet:localhost:11332"}), "local.d/greylist.conf"),
    # --- what it stands on
    (
        "resolver-silent",
        lambda facts: replace(facts, nameservers=(Nameserver("127.0.0.1:53", "silent"),)),
        "unbound",
    ),
    (
        "resolver-silent",
        lambda facts: replace(facts, nameservers=(Nameserver("10.0.0.1:53", "refuses"),)),
        "unbound",
    ),
    (
        "resolver-rewrites",
        lambda facts: replace(facts, nameservers=(Nameserver("10.0.0.1:53", rewrites_to="203.0.113.1"),)),
        "unbound",
    ),
    (
        "resolver-public",
        lambda facts: replace(facts, nameservers=(Nameserver("8.8.8.8:53", foreign=True),)),
        "unbound",
    ),
    (
        "list-sick",
        lambda facts: but(facts, "asked", sick_lists={"zen.example": "lists everybody"}),
        "policyctl dnsbl show",
    ),
    ("clock-off", lambda facts: replace(facts, clock=Clock(stepped=3_600_000)), "chrony"),
    ("clock-off", lambda facts: replace(facts, clock=Clock(from_hardware=600)), "chrony"),
    ("clock-unsynchronised", lambda facts: replace(facts, clock=Clock(synchronised=False)), "chrony"),
    (
        "disk-full",
        lambda facts: replace(facts, disks=(Disk("/var", "the database", 10**8, 10**9),)),
        "df -h /var",
    ),
    (
        "disk-full",
        lambda facts: replace(facts, disks=(Disk("/var", "the queue", 10**10, 1, 0.01),)),
        "df -i /var",
    ),
    (
        "database-damaged",
        lambda facts: but(facts, "database", problems=("row 3 missing",)),
        "policyctl db restore",
    ),
    ("database-large", lambda facts: but(facts, "database", size=10**12), "policyctl db compact"),
    ("wal-large", lambda facts: but(facts, "database", wal=10**9), "fuser"),
    ("no-backup", lambda facts: but(facts, "database", last_backup=0), "policyctl db backup"),
    ("no-backup", lambda facts: but(facts, "database", last_backup=NOW - 20 * DAY), "policyctl db backup"),
    (
        "known-hole",
        lambda facts: replace(facts, software=(Software("dnspython", "2.3.0", "2.3.0-1"),)),
        "python3-dnspython",
    ),
    (
        "known-hole",
        lambda facts: replace(facts, software=(Software("dnspython", "2.5.0"),)),
        "dnspython 2.6.1",
    ),
    ("known-hole", lambda facts: replace(facts, software=(Software("postfix", "3.7.8"),)), "apt install"),
    ("unseen", lambda facts: replace(facts, unseen={"mail log": "Permission denied"}), "root"),
]


@pytest.mark.parametrize(
    ("name", "plant", "mend"), PLANTED, ids=[f"{at}-{each[0]}" for at, each in enumerate(PLANTED)]
)
def test_a_planted_mistake_is_named_with_its_mend_and_nothing_else_is(
    facts: Facts, name: str, plant: Callable[[Facts], Facts], mend: str
) -> None:
    """Each mistake alone: one name, why it matters, the command; and no second finding that would mislead."""
    found = judge(plant(facts))
    assert {finding.name for finding in found} == {name}, found
    assert mend in found[0].mend
    for finding in found:
        assert all((finding.what, finding.why, finding.mend))
        assert "\n" not in finding.what + finding.why + finding.mend


def test_each_rule_has_a_mistake_planted_for_it(facts: Facts) -> None:
    """No rule stands here that nothing in this file sets off, and no two say the same name by accident."""
    for rule in RULES:
        assert any(list(rule(plant(facts))) for _, plant, _ in PLANTED), rule.__name__
    assert len({name for name, _, _ in PLANTED}) >= 45


def test_what_is_not_enforced_does_nothing_twice(facts: Facts) -> None:
    """Beside postgrey a greylist in shadow, by the file or by hand, delays nobody."""
    twice = with_other("inet:127.0.0.1:10023")(facts)
    assert names(but(twice, "asked", modes={"greylist": "shadow"})) == []
    assert names(with_policy('use = "greylist"', 'use = "greylist"\nmode = "shadow"')(twice)) == []
    assert (
        names(
            replace(
                with_postfix({"smtpd_milters": "inet:localhost:11332"})(facts),
                rspamd_off=frozenset({"greylist", "rbl", "spf"}),
            )
        )
        == []
    )


def test_address_families_that_do_not_meet(facts: Facts) -> None:
    """The right port on the wrong family, and a family that Postfix does not use at all."""
    over_six = replace(facts, listeners=(("inet:[::1]:10047", ""),), sockets=())
    asks = {"policyd_mx": SERVICE.replace("unix:policyd/policy.sock", "inet:127.0.0.1:10047")}
    asks["policyd_submission"] = asks["policyd_mx"]
    found = judge(with_postfix(asks)(over_six), ["tcp"])
    assert [finding.name for finding in found] == ["address-family"]
    assert "inet:[::1]:10047" in found[0].mend
    over_four = replace(facts, listeners=(("inet:127.0.0.1:10047", ""),), sockets=())
    assert names(with_postfix({**asks, "inet_protocols": "ipv6"})(over_four)) == ["address-family", "tcp"]
    assert names(with_postfix(asks)(over_four)) == ["tcp"]


def test_what_the_policy_does_not_need_is_not_missed(facts: Facts) -> None:
    """Without a quota nothing is counted at the end of a message; an empty list there is no mistake then."""
    without = with_policy('[[check]]\nuse = "quota"\nfor = "submission"\n', "")
    assert names(both(with_postfix({END_OF_DATA: ""}), without)(facts)) == []


def test_mail_of_local_programs_that_is_asked_about_is_no_mistake(facts: Facts) -> None:
    """pickup's mail sent through an smtpd that asks (contrib/postfix/master.cf); and root's cron jobs."""
    by_web = replace(facts, log=MailLog("/var/log/mail.log", {(33, "www-data"): 412}))
    assert names(beside(pickup_unix="pickup -o content_filter=smtp:[127.0.0.1]:10026")(by_web)) == []
    many = replace(facts, log=MailLog("/var/log/mail.log", {(0, "root"): 5000}))
    assert names(many) == ["pickup"]


def test_without_a_configuration_nobody_is_accused(facts: Facts) -> None:
    """Where policyd listens is not known then; that the file cannot be read is the one finding."""
    gone = replace(facts, config=None, listeners=(), config_problem="policyd.toml: there is no such file")
    assert names(gone) == ["config-refused"]


def test_the_worst_comes_first_and_decides(facts: Facts) -> None:
    """Exit codes of Nagios and Icinga; the first line alone says enough for a pager. What is ignored counts for nothing."""
    facts = replace(facts, unseen={"mail log": "Permission denied"})
    assert exit_code(judge(facts)) == EXIT_CODES["unknown"] == 3
    facts = but(facts, "database", last_backup=0)
    assert exit_code(judge(facts)) == 1
    facts = replace(facts, running=False)
    found = judge(facts)
    assert exit_code(found) == 2
    assert (
        summary(found) == "POLICYD CRITICAL: 1 critical, 1 warning, 1 unknown: not-running, no-backup, unseen"
    )
    assert exit_code(judge(facts, ["not-running", "no-backup", "unseen"])) == 0


def test_submission_entries_are_named_as_master_cf_names_them(facts: Facts) -> None:
    """An admin finds the entry that is meant."""
    entry = {"smtps": {**SUBMISSION, RECIPIENT: "permit_sasl_authenticated,$policyd_submission,reject"}}
    (finding,) = [each for each in judge(with_postfix({}, entry)(facts)) if each.name == "hidden"]
    assert re.search(r"master\.cf, smtps\) has permit_sasl_authenticated before policyd", finding.what)
