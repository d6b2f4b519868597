"""The whole configuration: each section read, and what must agree between them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from policyd.config.channels import read_channels
from policyd.config.positions import Path
from policyd.config.reader import key_of, keys_of, read_table, refuse_unknown
from policyd.config.sections import (
    SECTIONS,
    AlertSection,
    CheckCommon,
    CheckSection,
    Config,
    Detection,
    DetectSection,
    Listener,
    SuspendSection,
    TierSection,
    TiersSection,
)
from policyd.config.source import Document, read
from policyd.config.values import ANY, NAME
from policyd.errors import ConfigError
from policyd.match import Network, NetworkSet
from policyd.request import Site
from policyd.steering import network_value
from policyd.tiers import Tier, Tiers

OptionsOf = Callable[[str], type[Any]]
#: The tier in which volume detectors are quiet unless it says otherwise.
QUIET = "bulk"
TOP = ("include", *SECTIONS, "alert", "tier", "check", "detect")


def load(path: str | os.PathLike[str], options_of: OptionsOf) -> Config:
    """The configuration in the file ``path``.

    :param options_of: the ``Options`` class of the check that ``use`` names; :class:`LookupError` when there is none.
    :raises ConfigError: with every problem found, one line each: ``FILE:LINE: key: what is wrong; what to do``.
    """
    document = read(os.fspath(path))
    # With a file missing, what refers to it would only look wrong.
    whole = not document.problems
    config = assemble(document, options_of, whole)
    if config is None or document.problems:
        raise ConfigError(document.problems)
    return config


def assemble(document: Document, options_of: OptionsOf, whole: bool, partial: bool = False) -> Config | None:
    """The configuration that ``document`` describes; ``None`` when there are problems, which it holds then.

    :param whole: whether every file of it could be read.
    :param partial: in spite of problems make one of what is sound, without a policy version.
    """
    return _Assembly(document, options_of, whole, partial).config()


class _Assembly:
    def __init__(self, document: Document, options_of: OptionsOf, whole: bool, partial: bool) -> None:
        self._document = document
        self._options_of = options_of
        self._whole = whole
        self._partial = partial

    def config(self) -> Config | None:
        document = self._document
        homes = {key: f"[{name}]" for name, section in SECTIONS.items() for key in keys_of(section)}
        homes |= dict.fromkeys(keys_of(CheckCommon), "[[check]]")
        homes |= {key: "[[alert]]" for key in keys_of(AlertSection) if key not in homes}
        refuse_unknown(document, (), document.data, TOP, homes)
        sections = {name: self._section(name, section, homes) for name, section in SECTIONS.items()}
        site = sections["site"].site() if sections["site"] else Site()
        if sections["server"]:
            self._agree_on_listeners(sections["server"].listen)
        tiers = self._tiers(sections["tiers"] or TiersSection(), site)
        checks = self._checks(homes)
        detects = self._detects(homes, checks)
        suspend = sections["suspend"] or SuspendSection()
        channels = read_channels(document, homes)
        if document.problems and not self._partial:
            return None
        return Config(
            document.path,
            site,
            sections["server"],
            sections["store"],
            sections["log"],
            sections["keep"],
            sections["dns"],
            sections["alerts"],
            channels,
            tiers,
            checks,
            detects,
            suspend,
            suspend.suspending(lambda member: _account(site, member)),
            sections["site"].country_database if sections["site"] else "",
            "" if document.problems else policy_version(site, tiers, checks, detects, suspend),
        )

    def _table(self, path: Path, value: Any, written: str) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self._document.complain(path, f"must be a section; write {written} on a line of its own")
        return None

    def _section(self, name: str, section: type[Any], homes: Mapping[str, str]) -> Any:
        table = self._table((name,), self._document.data.get(name, {}), f"[{name}]")
        if table is None:
            return section() if self._partial else None
        refuse_unknown(self._document, (name,), table, keys_of(section), homes)
        return read_table(self._document, section, (name,), table, self._partial)

    def _agree_on_listeners(self, listeners: tuple[Listener, ...]) -> None:
        document = self._document
        at: Path = ("server", "listen")
        if not listeners:
            document.complain(at, 'is empty, so nobody could ask; write listen = ["inet:127.0.0.1:10047"]')
        labels: dict[str, int] = {}
        addresses: dict[str, int] = {}
        written = document.data.get("server", {}).get("listen", [])
        if not isinstance(written, list):
            return
        for index, listener in enumerate(listeners):
            here = (*at, index)
            if listener.routable and not len(listener.allow_from):
                document.complain(
                    here,
                    f"{listener.address} can be reached from elsewhere; write "
                    f'{{ address = "{listener.address}", allow_from = ["192.0.2.0/24"] }}, or listen on inet:127.0.0.1:10047',
                )
            given = written[index] if index < len(written) and isinstance(written[index], dict) else {}
            for key, kinds in (
                ("mode", {"unix"}),
                ("group", {"unix"}),
                ("allow_from", {"inet", "systemd", "endpoint"}),
            ):
                if key in given and listener.kind not in kinds:
                    document.complain((*here, key), f"means nothing for {listener.address}; remove it")
            any_port = listener.kind == "inet" and listener.inet[1] == 0
            first = addresses.setdefault(listener.address, index)
            if first != index and not any_port:
                document.complain(
                    here, f"{listener.address} is listed already, as listen[{first + 1}]; keep one of them"
                )
                continue
            first = labels.setdefault(listener.label, index)
            if first != index:
                document.complain(
                    here,
                    f"the label {listener.label!r} is that of listen[{first + 1}] too; give another label",
                )

    def _tiers(self, named: TiersSection, site: Site) -> Tiers:
        document = self._document
        tables = self._table(("tier",), document.data.get("tier", {}), "[tier.NAME]") or {}
        tiers: dict[str, Tier] = {}
        members: dict[str, str] = {}
        for name, value in tables.items():
            path = ("tier", name)
            if not NAME.fullmatch(name):
                document.complain(path, "is no name; use small letters, digits, - and _")
            table = self._table(path, value, f"[tier.{name}]")
            if table is None:
                continue
            refuse_unknown(document, path, table, keys_of(TierSection), {})
            section = read_table(document, TierSection, path, table)
            if section is None:
                section = TierSection()
            seen = set()
            for limit in section.limits:
                if (limit.unit, limit.window) in seen:
                    document.complain(
                        (*path, "limits"), f"a second limit for the window of '{limit}'; keep one of them"
                    )
                seen.add((limit.unit, limit.window))
            own = frozenset(_account(site, member) for member in section.members)
            for member in sorted(own):
                if member in members:
                    document.complain(
                        (*path, "members"),
                        f"{member} is a member of tier {members[member]} too; remove one of them",
                    )
                members[member] = name
            quiet = section.quiet if "quiet" in table else name == QUIET
            tiers[name] = Tier(name, section.limits, own, section.promote, quiet)
        self._agree_on_default(named.default, tiers)
        self._agree_on_tiers(named.learned, tiers)
        return Tiers(named.default, tiers, named.learned)

    def _agree_on_tiers(self, learned: str, tiers: Mapping[str, Tier]) -> None:
        """What leads to a tier names one that there is, and promotion comes to an end."""
        document, names = self._document, ", ".join(tiers) or "none; add [tier.NAME]"
        if not self._whole:
            return
        if learned and learned not in tiers:
            document.complain(("tiers", "learned"), f"there is no tier {learned!r}; the tiers are {names}")
        for tier in tiers.values():
            seen, there = {tier.name}, tier.promote
            if there is not None and there.to not in tiers:
                text = f"there is no tier {there.to!r}; the tiers are {names}"
                document.complain(("tier", tier.name, "promote"), text)
            while there is not None and there.to in tiers:
                if there.to in seen:
                    text = f"leads in a circle by {there.to!r}; promote to a tier that does not lead back"
                    document.complain(("tier", tier.name, "promote"), text)
                    break
                seen.add(there.to)
                there = tiers[there.to].promote

    def _agree_on_default(self, default: str, tiers: Mapping[str, Tier]) -> None:
        document = self._document
        named = document.data.get("tiers", {})
        names = ", ".join(tiers) or "none; add [tier.NAME]"
        if not self._whole or not isinstance(named, dict):
            return
        if "default" not in named and tiers:
            place = document.place(("tiers",) if "tiers" in document.data else ("tier",))
            text = f'is missing; write default = "NAME" in [tiers], one of {names}, or "" for no limits'
            document.complain_at(place, "tiers.default", text)
        elif default and default not in tiers:
            document.complain(("tiers", "default"), f"there is no tier {default!r}; the tiers are {names}")

    def _checks(self, homes: Mapping[str, str]) -> tuple[CheckSection, ...]:
        document = self._document
        tables = document.data.get("check", [])
        if not isinstance(tables, list):
            document.complain(("check",), "must be written with two brackets, [[check]]")
            return ()
        checks: list[CheckSection] = []
        places: dict[str, str] = {}
        for index, table in enumerate(tables):
            path = ("check", index)
            if not isinstance(table, dict):
                document.complain(path, "must be a table; write [[check]] on a line of its own")
                continue
            check = self._check(path, table, homes)
            if check is None:
                continue
            if check.name in places:
                text = f"a check of this name stands at {places[check.name]} already; give one of them another name"
                document.complain(path, text)
            places.setdefault(check.name, check.place)
            self._agree_on_counting(path, check, checks)
            self._agree_on_findings(path, check, checks, tables[:index])
            checks.append(check)
        return tuple(checks)

    def _detects(self, homes: Mapping[str, str], checks: tuple[CheckSection, ...]) -> tuple[Detection, ...]:
        document = self._document
        tables = document.data.get("detect", [])
        if not isinstance(tables, list):
            document.complain(("detect",), "must be written with two brackets, [[detect]]")
            return ()
        detects: list[Detection] = []
        places = {check.name: f"the check at {check.place}" for check in checks}
        for index, table in enumerate(tables):
            path = ("detect", index)
            if not isinstance(table, dict):
                document.complain(path, "must be a table; write [[detect]] on a line of its own")
                continue
            refuse_unknown(document, path, table, keys_of(DetectSection), homes)
            section = read_table(document, DetectSection, path, table)
            if section is None:
                continue
            if section.name in places:
                text = f"has the name of {places[section.name]}; give one of them another name"
                document.complain((*path, "name"), text)
            place = document.place(path)
            places.setdefault(section.name, f"the detector at {place}")
            detects.append(Detection(section, place))
        return tuple(detects)

    def _agree_on_findings(
        self, path: Path, check: CheckSection, before: list[CheckSection], written: list[Any]
    ) -> None:
        """``when`` names checks that stand before and see the same mail, or it would never hold."""
        read = {other.name: other for other in before}
        # One that has errors of its own is told of those only.
        named = {str(table.get("name") or table.get("use")) for table in written if isinstance(table, dict)}
        for index, condition in enumerate(check.when):
            place, other = (*path, "when", index), read.get(condition.check)
            if other is None and condition.check not in named and self._whole:
                there = ", ".join(read) or "none"
                self._document.complain(
                    place,
                    f"no check {condition.check!r} stands before this one (there is {there}); "
                    "move this check behind it, or correct the name",
                )
            elif (
                other is not None
                and ANY not in (check.direction, other.direction)
                and check.direction != other.direction
            ):
                self._document.complain(
                    place,
                    f"check {other.name!r} is for {other.direction} and this one for {check.direction}, so it would never "
                    "hold; give both the same for",
                )

    def _agree_on_counting(self, path: Path, check: CheckSection, before: Iterable[CheckSection]) -> None:
        """Two quota checks that look at one counter count a mail at one stage, or they would count it twice."""
        if check.use != "quota":
            return
        mine = check.options
        for other in before:
            if other.use != "quota":
                continue
            theirs = other.options
            # A client has a counter for each direction that a check is for.
            same_mail = check.direction == other.direction or (
                mine.per != "client" and ANY in (check.direction, other.direction)
            )
            if (
                same_mail
                and (mine.per, mine.count) == (theirs.per, theirs.count)
                and mine.count_at != theirs.count_at
            ):
                self._document.complain(
                    path,
                    f"counts the same mail per {mine.per} as check {other.name!r} at {other.place}, but at another stage, so "
                    "that each mail would count twice; give both the same count_at",
                )
                return

    def _check(self, path: Path, table: dict[str, Any], homes: Mapping[str, str]) -> CheckSection | None:
        document = self._document
        common = read_table(document, CheckCommon, path, table)
        use = table.get("use")
        if not isinstance(use, str):
            return None
        try:
            options_class = self._options_of(use)
        except LookupError as error:
            document.complain(
                (*path, "use"), str(error.args[0]) if error.args else f"there is no check {use!r}"
            )
            return None
        own, shared = keys_of(options_class), keys_of(CheckCommon)
        refuse_unknown(
            document, path, table, [*shared, *own], {k: v for k, v in homes.items() if k not in shared}
        )
        options = read_table(document, options_class, path, table)
        if common is None or options is None:
            return None
        name = common.name or use
        if not NAME.fullmatch(name):
            document.complain(
                path, f'{name!r} is no name; add name = "..." of small letters, digits, - and _'
            )
            return None
        given = {key: value for key, value in table.items() if key not in shared}
        place = document.place(path)
        return CheckSection(
            name,
            use,
            common.direction,
            common.mode,
            common.on_error,
            options,
            place,
            given,
            common.when,
            {key: document.place((*path, key)) for key in table},
        )


def _account(site: Site, member: str) -> str:
    """The account that a member means: a login without a domain gets the default one."""
    return member if "@" in member or member.startswith(("cert:", "client:")) else site.login(member)


def policy_version(
    site: Site,
    tiers: Tiers,
    checks: Iterable[CheckSection],
    detects: Iterable[Detection] = (),
    suspend: SuspendSection | None = None,
) -> str:
    """Eight hex digits that change when, and only when, what decides changes."""
    policy: dict[str, Any] = {
        "site": _normal(site),
        "tiers": [tiers.default, {name: _normal(tier) for name, tier in tiers.all.items()}],
        "checks": [
            [
                *(check.name, check.use, check.direction, check.mode, check.on_error, _normal_options(check)),
                *([str(condition) for condition in check.when]),
            ]
            for check in checks
        ],
    }
    if watched := [_normal(detect.section) for detect in detects]:
        policy |= {"detects": watched, "suspend": _normal(suspend or SuspendSection())}
    text = json.dumps(policy, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _normal_options(check: CheckSection) -> dict[str, Any]:
    options = {}
    for field in dataclasses.fields(check.options):
        try:
            options[field.name] = _normal(getattr(check.options, field.name))
        except TypeError:
            # A type of the check's own: what was written stands for it.
            options[field.name] = repr(check.given.get(key_of(field)))
    return options


def _normal(value: Any) -> Any:
    """``value`` in JSON's types, sets in order; :class:`TypeError` for a type that is not known here."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Network):
        return network_value(value)
    if isinstance(value, frozenset | NetworkSet):
        return sorted((_normal(member) for member in value), key=repr)
    if isinstance(value, tuple | list):
        return [_normal(member) for member in value]
    if isinstance(value, Mapping):
        return {str(key): _normal(member) for key, member in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: _normal(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no normal form")
