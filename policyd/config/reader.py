"""TOML tables into declared sections; every problem is noted and the reading goes on."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from policyd.config.positions import Path
from policyd.config.source import Document


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key in the file that a field stands for."""
    return str(field.metadata.get("key") or field.name)


def keys_of(section: type[Any]) -> list[str]:
    """The keys of a section, in the order of their declaration."""
    return [key_of(field) for field in dataclasses.fields(section)]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The typed value that holds without the key; ``dataclasses.MISSING`` when the key is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def read_table(
    document: Document, section: type[Any], path: Path, table: Mapping[str, Any], partial: bool = False
) -> Any:
    """An instance of ``section`` from the keys of ``table`` that are its own; ``None`` when there were problems.

    :param partial: leave out the keys with problems instead; no key may be required.
    """
    values: dict[str, Any] = {}
    sound = True
    for field in dataclasses.fields(section):
        key = key_of(field)
        if key in table:
            good, value = _read_value(document, field, (*path, key), table[key])
            if good:
                values[field.name] = value
            sound = sound and good
        elif default_of(field) is dataclasses.MISSING:
            document.complain(
                path, f"{key} is missing; add {key} = ... ({field.metadata['help'].rstrip('.')})"
            )
            sound = False
    return section(**values) if sound or partial else None


def refuse_unknown(
    document: Document, path: Path, table: Iterable[str], known: Iterable[str], homes: Mapping[str, str]
) -> None:
    """Note each key of ``table`` that is not among ``known``. ``homes`` names the section of keys that stand elsewhere."""
    known = list(known)
    for key in table:
        if key in known:
            continue
        similar = difflib.get_close_matches(key, known, 1, 0.65)
        if similar:
            hint = f"did you mean {similar[0]}?"
        elif key in homes:
            hint = f"it belongs to {homes[key]}"
        else:
            hint = f"remove it; known here: {', '.join(known)}"
        document.complain((*path, key), f"unknown key; {hint}")


def _read_value(
    document: Document, field: dataclasses.Field[Any], path: Path, value: Any
) -> tuple[bool, Any]:
    if "of" in field.metadata:
        return _read_nested(document, field.metadata["of"], path, value, default_of(field))
    read = field.metadata["read"]
    try:
        return True, read(value)
    except RecursionError:
        document.complain(path, "is nested too deeply; write fewer brackets within brackets")
    except ValueError as error:
        members = value if isinstance(value, list) else []
        told = False
        for index, member in enumerate(members):
            # The reader of a list stops at its first bad member; the admin hears of all of them.
            try:
                read([member])
            except ValueError as of_member:
                document.complain((*path, index), str(of_member))
                told = True
        if not told:
            document.complain(path, str(error))
    return False, None


def _read_nested(document: Document, of: type[Any], path: Path, value: Any, default: Any) -> tuple[bool, Any]:
    if isinstance(default, tuple):
        if not isinstance(value, list):
            example = getattr(default[0], dataclasses.fields(of)[0].name) if default else "..."
            document.complain(path, f'must be a list; write {path[-1]} = ["{example}"]')
            return False, None
        read = [_read_member(document, of, (*path, index), member) for index, member in enumerate(value)]
        return None not in read, tuple(read)
    if not isinstance(value, dict):
        document.complain(path, f"must be a table {{ ... }} of {', '.join(keys_of(of))}")
        return False, None
    refuse_unknown(document, path, value, keys_of(of), {})
    instance = read_table(document, of, path, value)
    return instance is not None, None if instance is None else dataclasses.asdict(instance)


def _read_member(document: Document, of: type[Any], path: Path, value: Any) -> Any:
    """A member of a list of tables; a bare text stands for the table's first key."""
    first = dataclasses.fields(of)[0]
    if isinstance(value, str):
        good, read = _read_value(document, first, path, value)
        return of(read) if good else None
    if not isinstance(value, dict):
        document.complain(path, f"must be a text in quotes or a table with {key_of(first)}")
        return None
    refuse_unknown(document, path, value, keys_of(of), {})
    return read_table(document, of, path, value)
