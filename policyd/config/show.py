"""The configuration as text again: the effective one as TOML, and the list of all keys for the manual."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from policyd.condition import Condition
from policyd.config.reader import default_of, key_of
from policyd.config.sections import (
    SECTIONS,
    AlertSection,
    CheckCommon,
    CheckSection,
    Config,
    DetectSection,
    Fail,
    Listener,
    SiteSection,
    TierSection,
    TiersSection,
)
from policyd.config.source import BARE_KEY
from policyd.config.values import WRITERS
from policyd.match import Network, NetworkSet
from policyd.steering import network_value
from policyd.units import Limit


def show(config: Config) -> str:
    """The effective configuration, defaults included, as TOML that loads to the same."""
    site = config.site
    site_section = SiteSection(
        site.domains,
        site.networks,
        site.default_domain,
        site.submission_contexts,
        site.certificates,
        config.country_database,
    )
    sections = [config.server, config.store, config.log, config.keep, config.dns, config.alerts]
    lines = [
        f"# The effective configuration of {json.dumps(config.path)}, policy {config.policy_version}.",
        *_section("site", site_section),
    ]
    for name, section in zip(list(SECTIONS)[1:7], sections, strict=True):
        lines += _section(name, section)
    if config.tiers.all or config.tiers.default:
        lines += _section("tiers", TiersSection(config.tiers.default, config.tiers.learned))
    for tier in config.tiers.all.values():
        lines += _section(
            f"tier.{tier.name}", TierSection(tier.limits, tier.members, tier.promote, tier.quiet)
        )
    for check in config.checks:
        lines += _check(check)
    if config.detects:
        lines += _section("suspend", config.suspend)
    for detect in config.detects:
        lines += ["", "[[detect]]", *_section("", detect.section)[2:]]
    for channel in config.channels:
        lines += ["", "[[alert]]", *_section("", channel)[2:]]
    return "\n".join(lines) + "\n"


def documented_keys(
    options_of: Callable[[str], type[Any]], check_names: Iterable[str]
) -> list[tuple[str, str, str, str]]:
    """Every key there is, for the manual: section, key, default as written in the file ("required" without one), help."""
    classes: list[tuple[str, type[Any]]] = []
    for name, section in SECTIONS.items():
        classes.append((name, section))
        if name == "server":
            classes += [("server.listen", Listener), ("server.fail", Fail)]
    classes += [
        ("alert", AlertSection),
        ("tier.NAME", TierSection),
        ("check", CheckCommon),
        ("detect", DetectSection),
    ]
    classes += [(f"check {use}", options_of(use)) for use in check_names]
    rows = [
        (
            "",
            "include",
            "[]",
            "More files, relative to this one; * and ? stand for names, which are read in order.",
        )
    ]
    for section_name, declared in classes:
        for field in dataclasses.fields(declared):
            default = default_of(field)
            text = "required" if default is dataclasses.MISSING else _written(field, default)
            rows.append((section_name, key_of(field), text, str(field.metadata["help"])))
    return rows


def _section(name: str, section: Any) -> list[str]:
    lines = ["", f"[{name}]"]
    lines += [
        f"{key_of(field)} = {_written(field, getattr(section, field.name))}"
        for field in dataclasses.fields(section)
    ]
    return lines


def _check(check: CheckSection) -> list[str]:
    common = CheckCommon(check.use, check.name, check.direction, check.mode, check.on_error, check.when)
    lines = ["", "[[check]]", *_section("", common)[2:]]
    for field in dataclasses.fields(check.options):
        key = key_of(field)
        value = getattr(check.options, field.name)
        # A check may keep a value in a form of its own, which its reader would not take: what was written is shown.
        text = toml(check.given[key]) if key in check.given else _written(field, value)
        lines.append(f"{key} = {text}")
    return lines


def _written(field: dataclasses.Field[Any], value: Any) -> str:
    writer = WRITERS.get(field.metadata["read"])
    return toml(writer(value) if writer else value)


def _listener(listener: Listener) -> Iterator[str]:
    for field in dataclasses.fields(listener):
        useless = {"allow_from"} if listener.kind == "unix" else {"mode", "group"}
        value = getattr(listener, field.name)
        if field.name not in useless and not (field.name == "group" and not value):
            yield f"{key_of(field)} = {_written(field, value)}"


def toml(value: Any) -> str:
    """``value`` as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Limit | Condition):
        return toml(str(value))
    if isinstance(value, Network):
        return toml(network_value(value))
    if isinstance(value, frozenset | NetworkSet):
        return _list(sorted(toml(member) for member in value))
    if isinstance(value, Listener):
        return "{ " + ", ".join(_listener(value)) + " }"
    if isinstance(value, tuple | list):
        return _list([toml(member) for member in value])
    if isinstance(value, Mapping):
        if not value:
            return "{}"
        return "{ " + ", ".join(f"{_key(str(key))} = {toml(member)}" for key, member in value.items()) + " }"
    isoformat = getattr(value, "isoformat", None)
    return str(isoformat()) if isoformat else toml(str(value))


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else toml(key)


def _list(members: list[str]) -> str:
    line = f"[{', '.join(members)}]"
    return line if len(line) <= 100 else "[\n" + "".join(f"  {member},\n" for member in members) + "]"
