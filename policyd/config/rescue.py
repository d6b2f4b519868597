"""What a configuration with errors still says: enough for policyctl to find the database and to steer it.

The daemon never starts with such a file. But who has to ban an account at night must not have to mend TOML first, so
what is sound is taken, and what is not is left out, by key, tier and check. Of a file that is no TOML as a whole, each
table that is TOML by itself is taken, and of ``[store]`` and ``[site]`` each line. Where the database is must be certain:
nothing is guessed.
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

#: A line that begins a table, whether it is complete or not.
_HEAD = re.compile(r"[ \t]*\[\[?[ \t]*[A-Za-z0-9_-]+[ \t]*(?:[\].#]|$)")
_TABLE = re.compile(r"[ \t]*\[[ \t]*(site|store)[ \t]*\][ \t]*(?:#.*)?")
_KEY = re.compile(r"[ \t]*([A-Za-z0-9_-]+)[ \t]*=")
#: What a file would have to say for the database not to be in its default place.
_ABOUT_PLACE = re.compile(r"store|url|sqlite|include")


class Rescued(NamedTuple):
    """What can be read of a configuration with errors."""

    config: Config
    #: Every problem, as :class:`ConfigError` has them.
    problems: tuple[str, ...]
    #: Names of the checks that were left out, as far as they are known.
    left_out: tuple[str, ...]
    #: Whether these are all: nothing else in the file can have been a check.
    knows_checks: bool
    #: Whether ``[site] default_domain`` is what the file says, or known to be missing in it.
    knows_default_domain: bool


def rescue(path: str | os.PathLike[str], options_of: OptionsOf) -> Rescued:
    """What the configuration in ``path`` says in spite of its errors.

    :raises ConfigError: with every problem: it does not say for certain where the database is.
    """
    document = read(os.fspath(path))
    problems = document.problems
    urls, pieces_lost = _take_pieces(document)
    named = document.data.get("store", {})
    if isinstance(named, dict) and "url" in named:
        urls.add(str(named["url"]))
    config = assemble(document, options_of, not problems, partial=True)
    if not document.broken:
        # Else they are about pieces, whose lines are not known.
        problems = document.problems
    if config is None or not _is_certain(document, urls):
        raise ConfigError(problems)
    read_names = {check.name for check in config.checks}
    left_out = dict.fromkeys(name for name in _check_names(document) if name not in read_names)
    included = any("include" in text for text in document.broken)
    return Rescued(
        config,
        tuple(problems),
        tuple(left_out),
        not (pieces_lost or included or document.unread),
        _knows_default_domain(document),
    )


def _take_pieces(document: Document) -> tuple[set[str], bool]:
    """Put into the document what broken files say: every URL of a database that is there, and whether anything was lost."""
    urls: set[str] = set()
    lost = False
    for text in document.broken:
        for piece in _pieces(text):
            data = _parsed(piece)
            if data is None:
                lost = True
                data = _lines(piece)
            store = data.get("store")
            if isinstance(store, dict) and "url" in store:
                urls.add(str(store["url"]))
            _join(document.data, data)
    return urls, lost


def _pieces(text: str) -> list[str]:
    """The text cut before each line that begins a table."""
    pieces: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _HEAD.match(line):
            pieces.append([])
        pieces[-1].append(line)
    return ["\n".join(lines) for lines in pieces]


def _parsed(piece: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(piece)
    except (ValueError, RecursionError):
        return None


def _lines(piece: str) -> dict[str, Any]:
    """What the lines of ``[site]`` or ``[store]`` say that are valid by themselves."""
    head, *lines = piece.split("\n")
    section = _TABLE.fullmatch(head)
    if section is None:
        return {}
    found: dict[str, Any] = {}
    for line in lines:
        if _KEY.match(line):
            for key, value in (_parsed(line) or {}).items():
                found.setdefault(key, value)
    return {section[1]: found}


def _join(into: dict[str, Any], data: dict[str, Any]) -> None:
    """Take ``data`` in; what is there already stays."""
    for key, value in data.items():
        present = into.setdefault(key, value)
        if present is not value and isinstance(present, dict) and isinstance(value, dict):
            _join(present, value)
        elif present is not value and isinstance(present, list) and isinstance(value, list):
            present.extend(value)


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
