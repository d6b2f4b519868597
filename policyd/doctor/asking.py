"""Rules about how Postfix asks: the address, the chroot, waiting, and what holds while nobody answers."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator

from policyd.doctor.facts import CRITICAL, WARNING, Facts, Finding
from policyd.doctor.wiring import alike, asking, ours
from policyd.errors import UserError
from policyd.postfix import lists
from policyd.postfix.addresses import choose, is_ours
from policyd.postfix.settings import Entry, postconf, seconds
from policyd.session import IDLE

#: Mail programs give up about then; longer waits help nobody, s.
LONG = 60


def services(facts: Facts) -> Iterator[tuple[Entry, lists.Item, lists.Service]]:
    """Each different way in which policyd is asked, with the first service that does."""
    seen = set()
    if facts.postfix is None:
        return
    for entry, _, _, items in asking(facts):
        for item in items:
            if ours(facts, item):
                service = lists.policy_service(item.argument)
                key = (entry.chroot, service.address, tuple(sorted(service.options.items())))
                if key not in seen:
                    seen.add(key)
                    yield entry, item, service


def _right(facts: Facts, chrooted: bool) -> str:
    assert facts.postfix is not None
    try:
        return choose(list(facts.listeners), facts.postfix.queue_directory, chrooted).mx
    except UserError:
        return f"unix:{facts.postfix.queue_directory}/policyd/policy.sock"


def outside_chroot(facts: Facts) -> Iterator[Finding]:
    """A socket that a locked-up smtpd cannot see."""
    if facts.postfix is None:
        return
    queue = facts.postfix.queue_directory
    for entry, _, service in services(facts):
        kind, _, path = service.address.partition(":")
        if kind != "unix" or not entry.chroot or not path.startswith("/"):
            continue
        inside = path.startswith(queue.rstrip("/") + "/")
        relative = path.removeprefix(queue.rstrip("/") + "/") if inside else "policyd/policy.sock"
        listen = (
            ""
            if inside
            else f'listen = ["unix:{queue}/policyd/policy.sock"] in [server] of policyd.toml, and '
        )
        yield Finding(
            "outside-chroot",
            CRITICAL,
            f"{entry.name} runs in the chroot {queue}, and asks policyd at {service.address}",
            "within the chroot there is no such path: every request fails, and default_action holds",
            f"{listen}write unix:{relative} in place of {service.address} in main.cf and master.cf",
        )


def wrong_address(facts: Facts) -> Iterator[Finding]:
    """An address at which policyd does not listen, or that Postfix cannot ask."""
    settings = facts.postfix
    if settings is None or facts.config is None:
        return
    addresses = [address for address, _ in facts.listeners]
    protocols = lists.words(settings.values.get("inet_protocols", "all"))
    for entry, item, service in services(facts):
        version = _version(service.address)
        if version and "all" not in protocols and f"ipv{version}" not in protocols:
            yield Finding(
                "address-family",
                CRITICAL,
                f"{entry.name} asks policyd at {service.address}, and inet_protocols is {', '.join(protocols)}",
                f"Postfix then opens no connection over IPv{version}: every request fails",
                f"write {_right(facts, entry.chroot)} in place of {service.address} in main.cf and master.cf",
            )
            continue
        if is_ours(item, addresses, settings.queue_directory) or not alike(facts, item):
            continue
        others = {_version(address) for address in addresses if address.startswith("inet:")}
        family = version and others and version not in others
        yield Finding(
            "address-family" if family else "wrong-address",
            CRITICAL,
            f"{entry.name} asks policyd at {service.address}, and policyd listens at {', '.join(addresses) or 'no address'}",
            "nobody is there: every request fails, and default_action holds",
            f"write {_right(facts, entry.chroot)} in place of {service.address} in main.cf and master.cf",
        )


def _version(address: str) -> int:
    """4 or 6; 0 for what is no IP address."""
    kind, _, rest = address.partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).version if kind == "inet" else 0
    except ValueError:
        return 0


def timeout(facts: Facts) -> Iterator[Finding]:
    """Waiting that ends before policyd's own deadline, or long after any mail program has gone."""
    if facts.postfix is None or facts.config is None:
        return
    deadline = facts.config.server.deadline / 1000
    for entry, _, service in services(facts):
        text = service.options.get("timeout") or facts.postfix.of(entry, "smtpd_policy_service_timeout")
        waits = seconds(text)
        mend = f"timeout={deadline + 5:.0f}s within the braces of check_policy_service {{ {service.address}, ... }}"
        if waits is not None and waits <= deadline:
            yield Finding(
                "timeout-short",
                WARNING,
                f"{entry.name} waits {text} for policyd, whose deadline is {deadline:g} s",
                "Postfix gives up before policyd does, and answers by default_action what policyd would have decided",
                mend,
            )
        elif waits is not None and waits > LONG:
            yield Finding(
                "timeout-long",
                WARNING,
                f"{entry.name} waits {text} for policyd",
                "if policyd ever hung, a mail would wait twice that long, and mail programs give up before",
                mend,
            )


def default_action(facts: Facts) -> Iterator[Finding]:
    """All mail refused while policyd is down."""
    if facts.postfix is None:
        return
    name = "smtpd_policy_service_default_action"
    for entry, _, service in services(facts):
        action = service.options.get("default_action") or facts.postfix.of(entry, name)
        if action.startswith("451 4.3.5") or action[:1] == "5" or action.split()[:1] == ["REJECT"]:
            yield Finding(
                "default-action",
                CRITICAL if action[:1] in ("5", "R") else WARNING,
                f'{entry.name} answers "{action}" while policyd does not run',
                "a restart, an upgrade or a crash of policyd then refuses all mail",
                f"default_action=DUNNO within the braces of check_policy_service {{ {service.address}, ... }}",
            )


def idle(facts: Facts) -> Iterator[Finding]:
    """Connections that policyd closes before Postfix does."""
    if facts.postfix is None or next(services(facts), None) is None:
        return
    names = ("smtpd_policy_service_max_idle", "smtpd_policy_service_max_ttl")
    limits = [seconds(facts.postfix.values.get(name, "")) or 0 for name in names]
    if min(limits) > IDLE:
        yield Finding(
            "idle",
            WARNING,
            f"{names[0]} is {facts.postfix.values[names[0]]}, and policyd closes what is idle for {IDLE:g} s",
            "Postfix then finds the connection closed, and the mail waits a second for the next one",
            shlex.join([*postconf(facts.postfix.directory), "-e", f"{names[0]} = 300s"]),
        )


def one_try(facts: Facts) -> Iterator[Finding]:
    """No second try."""
    name = "smtpd_policy_service_try_limit"
    if facts.postfix is None or next(services(facts), None) is None:
        return
    if facts.postfix.values.get(name, "2") in ("0", "1"):
        yield Finding(
            "one-try",
            WARNING,
            f"{name} is {facts.postfix.values[name]}",
            "a request that meets a restart of policyd is not asked again, and default_action holds for it",
            shlex.join([*postconf(facts.postfix.directory), "-e", f"{name} = 2"]),
        )


RULES = (outside_chroot, wrong_address, timeout, default_action, idle, one_try)
