"""Gathers the facts: each source once, and what a source hides is a fact of its own."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from policyd.cli.common import Session
from policyd.doctor.facts import Database, Facts
from policyd.errors import ConfigError, PolicydError, StoreDamaged
from policyd.opinion import OFF

if TYPE_CHECKING:
    from policyd.config import Config
    from policyd.postfix.settings import Settings

#: Room that Postfix and a log need at least, octets.
LITTLE = 100_000_000
#: Checks that ask the DNS.
_ASKS_DNS = ("dnsbl", "spf")
_RSPAMD = ("/etc/rspamd/local.d", "/etc/rspamd/override.d")


def gather(session: Session, instance: str = "") -> Facts:
    """All facts about the instance of Postfix whose main.cf is in ``instance`` (``""``: the default one)."""
    found: dict[str, Any] = {}
    unseen: dict[str, str] = {}
    config = _config(session, found)
    if config is not None:
        _policyd(session, config, found, unseen)
    settings = _postfix(instance, unseen)
    found["postfix"] = settings
    if config is not None:
        _between(config, settings, found)
    _log(settings, [address for address, _ in found.get("listeners", ())], found, unseen)
    found["rspamd_off"] = frozenset(_rspamd_off())
    return Facts(**found, unseen=unseen)


def _config(session: Session, found: dict[str, Any]) -> Config | None:
    try:
        return session.sound_config
    except ConfigError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        found["config_problem"] = error.problems[0] + more
    from policyd.checks import options_of
    from policyd.config import rescue

    try:
        return rescue(session.config_path, options_of).config
    except ConfigError:
        return None


def _policyd(session: Session, config: Config, found: dict[str, Any], unseen: dict[str, str]) -> None:
    from policyd.cli.postfix import listeners
    from policyd.cli.status import daemon_pid
    from policyd.doctor import look_clock, look_database, look_process
    from policyd.store import locks
    from policyd.store.connect import open_for_reading

    path = config.store.path
    found["config"] = config
    found["listeners"] = tuple(listeners(config))
    found["running"] = locks.daemon_running(path)
    try:
        with open_for_reading(path) as connection:
            found["database"] = look_database.database(connection, path)
            found["asked"] = look_database.asked(connection)
            found["clock"] = look_clock.look(connection)
    except StoreDamaged as error:
        found["database"] = Database(path, problems=(str(error),))
    except PolicydError as error:
        unseen["database"] = str(error)
    found.setdefault("clock", look_clock.look(None))
    # Not within: there root acts as the owner of the database, who may not be able to read Python's own modules.
    if "asked" in found:
        asked = found["asked"]
        missing = look_database.missing(config, asked.stages, asked.refusals)
        found["asked"] = replace(asked, missing=missing)
    pid = daemon_pid(path) if found["running"] else None
    if pid is not None:
        found["process"] = look_process.process(pid)


def _postfix(instance: str, unseen: dict[str, str]) -> Settings | None:
    from policyd.postfix.settings import PostfixError, read

    try:
        return read(instance)
    except PostfixError as error:
        unseen["configuration of Postfix"] = str(error)
        return None


def _between(config: Config, settings: Settings | None, found: dict[str, Any]) -> None:
    """What both Postfix and policyd have a part in."""
    from policyd.dns.nameservers import system_nameservers
    from policyd.doctor import look_disks, look_process, look_sockets
    from policyd.postfix.settings import seconds

    values = settings.values if settings is not None else {}
    addresses = [address for address, _ in found["listeners"]]
    found["sockets"] = look_sockets.look(addresses, values.get("mail_owner", "postfix"))
    if any(check.use in _ASKS_DNS and check.mode != OFF for check in config.checks):
        from policyd.doctor import look_nameservers

        names = config.dns.nameservers or system_nameservers()
        found["nameservers"] = look_nameservers.look(names, config.dns.timeout / 1000, config.site.networks)
    wanted = [(os.path.dirname(config.store.path), "the database", config.keep.min_free)]
    if settings is not None:
        size = int(seconds(values.get("message_size_limit", "")) or 0)
        wanted.append((settings.queue_directory, "Postfix's queue", max(LITTLE, 2 * size)))
    for sink in config.log.decisions:
        if sink.startswith("file:"):
            wanted.append(
                (os.path.dirname(os.path.abspath(sink.removeprefix("file:"))), "the decision log", LITTLE)
            )
    found["disks"] = look_disks.look(wanted)
    found["software"] = look_process.software(values.get("mail_version", ""))


def _log(
    settings: Settings | None, addresses: list[str], found: dict[str, Any], unseen: dict[str, str]
) -> None:
    from policyd.doctor import look_maillog

    if settings is None:
        return
    # Postfix names a UNIX socket as main.cf does, relative to the queue directory.
    queue = settings.queue_directory.rstrip("/") + "/"
    names = [*addresses, *(address.replace(f"unix:{queue}", "unix:") for address in addresses)]
    try:
        found["log"] = look_maillog.look(
            settings.values.get("maillog_file", ""), names, datetime.now().astimezone()
        )
    except OSError as error:
        unseen["mail log"] = f"{error.filename}: {error.strerror}"


def _rspamd_off() -> list[str]:
    """Modules of rspamd that are switched off."""
    off = []
    for directory in _RSPAMD:
        for module in ("greylist", "rbl", "spf", "ratelimit"):
            try:
                with open(f"{directory}/{module}.conf", encoding="utf-8", errors="replace") as file:
                    text = file.read(65536)
            except OSError:
                continue
            if re.search(r'^\s*enabled\s*=\s*"?(?:false|no|off)\b', text, re.MULTILINE):
                off.append(module)
    return off
