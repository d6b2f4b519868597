"""How a table of the configuration is declared: a frozen dataclass whose fields say how a value is read.

A check declares its own section this way (``Options``); :mod:`policyd.config` reads TOML tables into such classes.
Each field gives a reader, which turns the TOML value into the typed one or raises :class:`ValueError`, and a help
text, which the manual must carry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from policyd.match import Network, NetworkSet, fold, parse_network
from policyd.units import SECOND, Limit, parse_duration, parse_limit, parse_size

#: Braces in what strangers wrote, as they stand in an answer.
_ROUND = str.maketrans("{}", "()")

Reader = Callable[[Any], Any]
REQUIRED = dataclasses.MISSING


class Disagreement(ValueError):
    """Keys that do not go together."""

    def __init__(self, key: str, text: str) -> None:
        """
        :param key: the one to look at first.
        :param text: what is wrong, and what to write.
        """
        super().__init__(text)
        self.key = key


def setting(read: Reader, default: Any = REQUIRED, *, help: str, key: str = "") -> Any:
    """A dataclass field that is a configuration key.

    :param read: turns the TOML value into the typed one; raises :class:`ValueError` with the reason.
    :param default: the typed value when the key is absent; without one the key is required.
    :param help: one sentence for the manual: meaning and unit.
    :param key: the key in the file, when the field's name cannot be it (``for``).
    """
    metadata = {"read": read, "help": help, "key": key}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def string(value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError(f"must be a text in quotes, not {_kind(value)}")
    return value


def folded(value: Any) -> str:
    """A text that is compared without regard to case."""
    return fold(string(value).strip())


def boolean(value: Any) -> bool:
    """``true`` or ``false``."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, without quotes, not {_kind(value)}")
    return value


def whole(value: Any) -> int:
    """A whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a whole number, not {_kind(value)}")
    if isinstance(value, float) or value < 0:
        raise ValueError(f"must be a whole number from 0 on, not {value}")
    return value


def duration(value: Any) -> int:
    """A duration such as ``"30s"``, in ms."""
    return parse_duration(string(value))


def delay(value: Any) -> int:
    """A duration of a second or more, for what somebody has to wait, in ms."""
    read = duration(value)
    if read < SECOND:
        raise ValueError(f"{value!r} is no delay; write 1s or more, or leave the check out")
    return read


def size(value: Any) -> int:
    """A size such as ``"10MB"``, in bytes."""
    return parse_size(string(value))


def limit(value: Any) -> Limit:
    """A limit such as ``"20 recipients per 1h"``."""
    return parse_limit(string(value))


def network(value: Any) -> Network:
    """An IP address or network."""
    return parse_network(string(value))


def networks(value: Any) -> NetworkSet:
    """A list of IP addresses and networks."""
    return NetworkSet(list_of(network)(value))


def one_of(*choices: str) -> Reader:
    """One of ``choices``, written exactly so."""

    def read(value: Any) -> str:
        if value not in choices:
            shown = ", ".join(choice or '""' for choice in choices)
            raise ValueError(f"{value!r} is none of {shown}")
        return string(value)

    return read


def list_of(read: Reader) -> Reader:
    """A list, each member read by ``read``; as a tuple."""

    def read_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list [...], not {_kind(value)}")
        return tuple(read(member) for member in value)

    return read_list


def set_of(read: Reader) -> Reader:
    """A list, each member read by ``read``; as a frozenset."""
    read_list = list_of(read)
    return lambda value: frozenset(read_list(value))


def template(*fields: str) -> Reader:
    """A text of an answer, in which ``{field}`` stands for one of ``fields``; printable, at most 250 bytes."""

    def read(value: Any) -> str:
        text = string(value)
        if not text.strip() or not text.isprintable():
            raise ValueError("must be one printable line")
        if len(text.encode()) > 250:
            raise ValueError(
                "is longer than 250 bytes; the numbers and the reference need the rest of the line"
            )
        try:
            fill(text, dict.fromkeys(fields, "x"))
        except KeyError as error:
            allowed = ", ".join("{" + name + "}" for name in fields)
            raise ValueError(f"{{{error.args[0]}}} is no field here; use {allowed}") from None
        if any("{" in piece or "}" in piece for piece in list(_split_fields(text))[::2]):
            raise ValueError("has a brace without its other half; a field is written {ref}")
        return text

    return read


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with each ``{name}`` replaced; :class:`KeyError` for an unknown name. Nothing else is special.

    The reference is filled in later, where ``{ref}`` stands then; so no value may hold braces but that of ``ref`` itself.
    """
    out = []
    for piece in _split_fields(text):
        if piece[:1] == "{" and piece[-1:] == "}":
            name = piece[1:-1]
            value = values[name]
            out.append(value if name == "ref" else value.translate(_ROUND))
        else:
            out.append(piece)
    return "".join(out)


def _split_fields(text: str) -> Iterable[str]:
    at = 0
    while (start := text.find("{", at)) != -1 and (end := text.find("}", start)) != -1:
        yield text[at:start]
        yield text[start : end + 1]
        at = end + 1
    yield text[at:]


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), "a date")
