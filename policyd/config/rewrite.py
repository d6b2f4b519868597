"""Sets single keys in the text of a configuration file; comments, order and everything else stay as they are."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence

from policyd.config.positions import scan

#: Longer lists are written one member a line.
_WIDE = 100


def with_keys(text: str, section: str, wanted: Mapping[str, str | Sequence[str]]) -> str:
    """``text`` with these keys of a plain table (``[section]``) set; a table that is not there is added at the front.

    :raises ValueError: the text is no TOML, or has the table in a form that cannot be changed here.
    """
    before = tomllib.loads(text)
    if not isinstance(before.get(section, {}), dict) or not _plain_table(text, section, before):
        raise ValueError(
            f"[{section}] is written in a form that is not changed here; write it as a table of its own"
        )
    for key, value in wanted.items():
        present = tomllib.loads(text).get(section, {})
        there = present.get(key) if isinstance(present, dict) else None
        if (list(there) if isinstance(there, list) else there) == (
            value if isinstance(value, str) else list(value)
        ):
            continue
        text = _with(text, section, key, _written(key, value))
    return text


def _plain_table(text: str, section: str, data: Mapping[str, object]) -> bool:
    line = scan(text).lines.get((section,))
    return section not in data or (
        line is not None and re.match(r"\s*\[[^\[]", text.splitlines()[line - 1]) is not None
    )


def _written(key: str, value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return _quoted(value)
    members = [_quoted(member) for member in value]
    line = f"[{', '.join(members)}]"
    if len(key) + len(line) + 3 <= _WIDE:
        return line
    return "[\n" + "".join(f"  {member},\n" for member in members) + "]"


def _quoted(text: str) -> str:
    # The escapes of JSON are those of TOML, which wants DEL escaped, too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _with(text: str, section: str, key: str, value: str) -> str:
    lines = text.splitlines(keepends=True)
    found = scan(text).lines
    at = found.get((section, key))
    if at is not None:
        start = sum(map(len, lines[: at - 1]))
        start = text.index("=", start) + 1
        start += len(text[start:]) - len(text[start:].lstrip(" \t"))
        return text[:start] + value + text[_end(text, start) :]
    table = found.get((section,))
    if table is not None and re.match(r"\s*\[", lines[table - 1]):
        if not lines[table - 1].endswith("\n"):
            lines[table - 1] += "\n"
        return "".join([*lines[:table], f"{key} = {value}\n", *lines[table:]])
    first = next((number for number, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    # Comments right above the first table are about it.
    while first and lines[first - 1].startswith("#"):
        first -= 1
    if first and not lines[first - 1].endswith("\n"):
        lines[first - 1] += "\n"
    return "".join([*lines[:first], f"[{section}]\n{key} = {value}\n\n", *lines[first:]])


def _end(text: str, start: int) -> int:
    """Where the value that begins at ``start`` ends: the shortest text that is a value and is followed by nothing else."""
    for found in re.finditer(r"[\]}\"'\w]", text[start:]):
        end = start + found.end()
        rest = text[end:].split("\n", 1)[0].strip()
        if rest and not rest.startswith("#"):
            continue
        try:
            tomllib.loads(f"key = {text[start:end]}")
        except ValueError:
            continue
        return end
    raise ValueError("the value has no end")
