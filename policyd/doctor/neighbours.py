"""Rules about what runs beside policyd and does the same: rspamd, postscreen, postgrey, other policy servers, Postfix itself."""

from __future__ import annotations

from collections.abc import Iterator

from policyd.doctor.facts import WARNING, Facts, Finding
from policyd.doctor.wiring import asking, ours
from policyd.postfix import lists

_ENFORCING = frozenset({"enforce", "drop"})
#: What policy servers are known by: their port or a part of their address.
_KNOWN = {
    "10031": "cluebringer",
    "10040": "postfwd",
    "10045": "postfwd",
    "7777": "iRedAPD",
    "8552": "policyd-rate-limit",
    "ratelimit/": "policyd-rate-limit",
    "rate-limit": "policyd-rate-limit",
    "12340": "mtpolicyd",
    "mtpolicyd": "mtpolicyd",
}


def _others(facts: Facts) -> dict[str, None]:
    """Addresses of policy servers that are not policyd."""
    found: dict[str, None] = {}
    if facts.postfix is not None:
        for _, _, _, items in asking(facts):
            for item in items:
                if item.name == lists.POLICY_SERVICE and not ours(facts, item):
                    found[lists.policy_service(item.argument).address] = None
    return found


def _zones(facts: Facts) -> set[str]:
    if facts.config is None:
        return set()
    names = facts.uses("dnsbl")
    return {site.zone for check in facts.config.checks if check.name in names for site in check.options.sites}


def greylisted_twice(facts: Facts) -> Iterator[Finding]:
    """postgrey, and the check greylist."""
    checks = facts.uses("greylist")
    for address in _others(facts):
        if checks and ("postgrey" in address or address.endswith(":10023")):
            yield Finding(
                "postgrey",
                WARNING,
                f"postgrey ({address}) greylists, and so does check {checks[0]}",
                "strangers wait twice, and no longer than one of them says",
                f"take check_policy_service {address} out of smtpd_recipient_restrictions, then "
                f"systemctl disable --now postgrey; or policyctl check off {checks[0]}",
            )


def spf_twice(facts: Facts) -> Iterator[Finding]:
    """policyd-spf, and the check spf."""
    checks = facts.uses("spf")
    for address in _others(facts):
        if checks and "spf" in address:
            yield Finding(
                "policyd-spf",
                WARNING,
                f"{address} checks SPF, and so does check {checks[0]}",
                "each mail is looked up twice, and the two may refuse by different rules",
                f"take check_policy_service {address} out of smtpd_recipient_restrictions; or policyctl check off {checks[0]}",
            )


def counted_twice(facts: Facts) -> Iterator[Finding]:
    """Another daemon that limits sending."""
    checks = facts.uses("quota")
    for address in _others(facts):
        name = next(
            (
                name
                for mark, name in _KNOWN.items()
                if address.endswith(f":{mark}") or (mark[0].isalpha() and mark in address)
            ),
            "",
        )
        if checks and name:
            yield Finding(
                "other-limits",
                WARNING,
                f"{name} ({address}) limits sending, and so does check {checks[0]}",
                "whichever limit is reached first refuses, and only one of the two can say why",
                f"take its limits over (policyctl import; docs/moving.md), then check_policy_service {address} out",
            )


def postscreen(facts: Facts) -> Iterator[Finding]:
    """postscreen(8) asks the same blocklists."""
    settings = facts.postfix
    if settings is None or not any(
        command.startswith("postscreen") for command in settings.commands.values()
    ):
        return
    if settings.values.get("postscreen_dnsbl_action", "ignore") not in _ENFORCING:
        return
    theirs = {
        word.split("*")[0].split("=")[0]
        for word in lists.words(settings.values.get("postscreen_dnsbl_sites", ""))
    }
    both = sorted(theirs & _zones(facts))
    if both:
        yield Finding(
            "postscreen",
            WARNING,
            f"postscreen refuses by {', '.join(both)}, and so does policyd",
            "a list that goes mad is noticed by policyd and taken out of use; postscreen goes on refusing by it",
            "postconf -e 'postscreen_dnsbl_action = ignore'; or take these lists out of sites in policyd.toml",
        )


def listed_in_postfix(facts: Facts) -> Iterator[Finding]:
    """reject_rbl_client of the same lists."""
    if facts.postfix is None:
        return
    zones = _zones(facts)
    both = sorted(
        {
            zone
            for _, _, _, items in asking(facts)
            for item in items
            if item.name.startswith(("reject_rbl_", "reject_rhsbl_")) and not item.warns
            for zone in [item.argument.split("=")[0]]
            if zone in zones
        }
    )
    if both:
        yield Finding(
            "rbl-in-postfix",
            WARNING,
            f"main.cf or master.cf refuses by {', '.join(both)} (reject_rbl_client), and so does policyd",
            "a list that goes mad is noticed by policyd and taken out of use; Postfix goes on refusing by it",
            f"take reject_rbl_client {both[0]} out of the restrictions; postconf -n and postconf -P show where it stands",
        )


def rspamd(facts: Facts) -> Iterator[Finding]:
    """rspamd as a milter, which has all of this in its default configuration."""
    if facts.postfix is None:
        return
    milters = {facts.postfix.of(entry, "smtpd_milters") for entry in facts.postfix.entries}
    if not any("rspamd" in milter or ":11332" in milter or ":11333" in milter for milter in milters):
        return
    same = [
        (module, checks)
        for module, kind in (
            ("greylist", "greylist"),
            ("rbl", "dnsbl"),
            ("spf", "spf"),
            ("ratelimit", "quota"),
        )
        if module not in facts.rspamd_off
        and (checks := facts.uses(kind))
        # Its rate limits are off until somebody writes some.
        and module != "ratelimit"
    ]
    if same:
        names = ", ".join(f"{module} (check {checks[0]})" for module, checks in same)
        files = " ".join(f"/etc/rspamd/local.d/{module}.conf" for module, _ in same)
        yield Finding(
            "rspamd",
            WARNING,
            f"rspamd is a milter here, and does what policyd does, too: {names}",
            "mail waits or is looked up twice, and is refused by whichever says so first",
            f"'enabled = false;' in {files}, then systemctl reload rspamd; or policyctl check off {same[0][1][0]}",
        )


RULES = (greylisted_twice, spf_twice, counted_twice, postscreen, listed_in_postfix, rspamd)
