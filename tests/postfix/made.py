"""Configurations of Postfix for tests that start none."""

from __future__ import annotations

from collections.abc import Mapping

from policyd.postfix import lists
from policyd.postfix.addresses import Addresses
from policyd.postfix.settings import Entry, Settings
from policyd.postfix.wiring import Plan, plan

SOCKET = "unix:policyd/policy.sock"
QUEUE = "/var/spool/postfix"
ADDRESSES = Addresses(SOCKET, SOCKET, (f"unix:{QUEUE}/policyd/policy.sock",))
DEFAULTS = {
    "queue_directory": QUEUE,
    "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination",
    "smtpd_reject_unlisted_recipient": "yes",
    "smtpd_policy_service_timeout": "100s",
    "smtpd_policy_service_default_action": "451 4.3.5 Server configuration problem",
    "smtpd_policy_service_max_idle": "300s",
    "smtpd_policy_service_max_ttl": "1000s",
    "smtpd_policy_service_try_limit": "2",
    "inet_protocols": "all",
    "mail_version": "3.7.11",
    "message_size_limit": "10240000",
}
SUBMISSION = {
    "smtpd_sasl_auth_enable": "yes",
    "smtpd_relay_restrictions": "",
    "smtpd_recipient_restrictions": "permit_sasl_authenticated,reject",
}


def expanded(value: str, parameters: Mapping[str, str]) -> str:
    """``$name`` replaced, as ``postconf -x`` does it."""
    return ", ".join(
        expanded(parameters.get(word[1:], ""), parameters) if word.startswith("$") else word
        for word in lists.words(value)
    )


def settings(
    main: Mapping[str, str] | None = None,
    services: Mapping[str, Mapping[str, str]] | None = None,
    *,
    chroot: bool = True,
) -> Settings:
    """An instance: what main.cf says, and by service (``smtp``, ``submission``) what ``-o`` says."""
    main = dict(main or {})
    raw = {**DEFAULTS, **main}
    values = {name: expanded(value, raw) if "$" in value else value for name, value in raw.items()}
    entries = []
    for name, overrides in (services if services is not None else {"smtp": {}}).items():
        own = {key: expanded(value, raw) if "$" in value else value for key, value in overrides.items()}
        entries.append(Entry(name, "inet", chroot, dict(overrides), own))
    commands = {entry.key: "smtpd" for entry in entries} | {"pickup/unix": "pickup"}
    return Settings("", raw, values, frozenset(main), tuple(entries), commands)


def planned(found: Settings) -> Plan:
    """What must change in it."""
    return plan(found, ADDRESSES, 5000)


def changed(found: Settings) -> Settings:
    """The instance as the plan makes it."""
    main = {name: found.raw[name] for name in found.explicit}
    services = {entry.name: dict(entry.raw) for entry in found.entries}
    for change in planned(found).changes:
        if change.service:
            services[change.service.partition("/")[0]][change.name] = change.after
        else:
            main[change.name] = change.after
    return settings(main, services)
