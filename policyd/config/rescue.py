"""What a configuration with errors still says: enough for policyctl to find the database and to steer it.

The daemon never starts with such a file. But who has to ban an account at night must not have to mend TOML first, so
what is sound is taken, and what is not is left out, by key, tier and check. Of a file that is no TOML at all, the lines
of ``[store]`` and ``[site]`` that can be read alone are taken. Where the database is must be certain: nothing is guessed.
"""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any, NamedTuple

from policyd.config.load import OptionsOf, assemble
from policyd.config.sections import Config
from policyd.config.source import Document, read
from policyd.config.values import domain_or_none, store_path
from policyd.errors import ConfigError

_HEAD = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?", re.ASCII)
_OTHER_HEAD = re.compile(r"\s*\[\[?[^\[\]=,]*\]\]?\s*(?:#.*)?")
_PAIR = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?:\.\s*([A-Za-z0-9_-]+)\s*)?=")
#: What a file would have to say for the database not to be in its default place.
_ABOUT_PLACE = re.compile(r"store|url|sqlite|include")


class Rescued(NamedTuple):
    """What can be read of a configuration with errors."""

    config: Config
    #: Every problem, as :class:`ConfigError` has them.
    problems: tuple[str, ...]
    #: Names of the checks that were left out.
    left_out: tuple[str, ...]
    #: Whether ``[site] default_domain`` is what the file says, or known to be missing in it.
    knows_default_domain: bool


def rescue(path: str | os.PathLike[str], options_of: OptionsOf) -> Rescued:
    """What the configuration in ``path`` says in spite of its errors.

    :raises ConfigError: with every problem: it does not say for certain where the database is.
    """
    document = read(os.fspath(path))
    whole = not document.problems
    urls = _take_lines(document)
    named = document.data.get("store", {})
    if isinstance(named, dict) and "url" in named:
        urls.add(str(named["url"]))
    config = assemble(document, options_of, whole, partial=True)
    if config is None or not _is_certain(document, urls):
        raise ConfigError(document.problems)
    read_names = {check.name for check in config.checks}
    left_out = dict.fromkeys(name for name in _check_names(document) if name not in read_names)
    return Rescued(config, tuple(document.problems), tuple(left_out), _knows_default_domain(document))


def _take_lines(document: Document) -> set[str]:
    """Put what single lines of broken files say into the document; every URL of a database that is among it."""
    urls: set[str] = set()
    for text in document.broken:
        for section, key, value in _lines(text):
            if section == "store" and key == "url":
                urls.add(str(value))
            table = document.data.setdefault(section, {})
            if isinstance(table, dict):
                table.setdefault(key, value)
    return urls


def _lines(text: str) -> list[tuple[str, str, Any]]:
    """Section, key and value of each line of ``[site]`` and ``[store]`` that is valid by itself."""
    found = []
    section = ""
    for line in text.split("\n"):
        if head := _HEAD.fullmatch(line):
            section = head[1]
        elif _OTHER_HEAD.fullmatch(line):
            section = "another"
        elif pair := _PAIR.match(line):
            try:
                value = tomllib.loads(line)[pair[1]]
            except (ValueError, RecursionError):
                continue
            if section in ("site", "store") and not pair[2]:
                found.append((section, pair[1], value))
            elif not section and pair[1] in ("site", "store") and isinstance(value, dict):
                found += [(pair[1], key, inner) for key, inner in value.items()]
    return found


def _is_certain(document: Document, urls: set[str]) -> bool:
    """Whether the place of the database is known: said once and well, or not said at all."""
    twice = any(": store.url: is already set" in problem for problem in document.problems)
    if twice or not isinstance(document.data.get("store", {}), dict):
        return False
    if not urls:
        return not document.unread and not any(_ABOUT_PLACE.search(text) for text in document.broken)
    try:
        return len({store_path(url) for url in urls}) == 1
    except ValueError:
        return False


def _check_names(document: Document) -> list[str]:
    """The names of all checks that the file has, sound or not."""
    tables = document.data.get("check", [])
    names = [
        table.get("name", table.get("use"))
        for table in (tables if isinstance(tables, list) else [])
        if isinstance(table, dict)
    ]
    return [name for name in names if isinstance(name, str)]


def _knows_default_domain(document: Document) -> bool:
    site = document.data.get("site", {})
    if not isinstance(site, dict):
        return False
    if "default_domain" not in site:
        return not document.unread and not any(
            "default_domain" in text or "include" in text for text in document.broken
        )
    try:
        domain_or_none(site["default_domain"])
    except ValueError:
        return False
    return True
