"""How the configuration's values are read: what is right, and what is said about what is wrong."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.match import parse_network
from policyd.settings import (
    duration,
    fill,
    folded,
    limit,
    list_of,
    network,
    networks,
    one_of,
    set_of,
    setting,
    size,
    string,
    template,
    whole,
)
from policyd.units import HOUR, Limit

MODE = one_of("enforce", "shadow")
TEXT = template("ref", "user")


@pytest.mark.parametrize(
    ("read", "value", "result"),
    [
        (string, "Text ", "Text "),
        (string, "", ""),
        (folded, " Alice@Example.ORG ", "alice@example.org"),
        (whole, 0, 0),
        (whole, 10**12, 10**12),
        (duration, "1h", HOUR),
        (size, "10MB", 10_000_000),
        (limit, "20 recipients per 1h", Limit(20, "recipients", HOUR)),
        (network, "192.0.2.0/24", parse_network("192.0.2.0/24")),
        (MODE, "shadow", "shadow"),
        (list_of(whole), [1, 2, 1], (1, 2, 1)),
        (list_of(string), [], ()),
        (set_of(folded), ["A", "a", "b"], frozenset({"a", "b"})),
        (TEXT, "Refused {user}; ref {ref}", "Refused {user}; ref {ref}"),
        (TEXT, "100% of it", "100% of it"),
        (TEXT, "x" * 250, "x" * 250),
    ],
)
def test_values(read: Callable[[Any], Any], value: Any, result: Any) -> None:
    """The typed value; lists become tuples and frozensets, so that a configuration cannot change under a check."""
    assert read(value) == result
    assert type(read(value)) is type(result)


@pytest.mark.parametrize(
    ("read", "value", "why"),
    [
        (string, 5, "must be a text in quotes, not a number"),
        (string, True, "must be a text in quotes, not true or false"),
        (string, [], "must be a text in quotes, not a list"),
        (string, {}, "must be a text in quotes, not a table"),
        (string, datetime.date(2026, 1, 1), "must be a text in quotes, not a date"),
        (whole, True, "must be a whole number, not true or false"),
        (whole, "5", "must be a whole number, not a text"),
        (whole, 1.5, "must be a whole number from 0 on, not 1.5"),
        (whole, -1, "must be a whole number from 0 on, not -1"),
        (duration, 60, "must be a text in quotes"),
        (duration, "1 hour", "is no duration"),
        (size, 10, "must be a text in quotes"),
        (limit, "20 per 1h", "does not say what it counts"),
        (network, "192.0.2.1/24", "has host bits set"),
        (networks, ["192.0.2.0/24", "x"], "'x' is no IP address"),
        (networks, "192.0.2.0/24", "must be a list"),
        (MODE, "Enforce", "'Enforce' is none of enforce, shadow"),
        (MODE, [], "is none of"),
        (MODE, 1, "1 is none of"),
        (list_of(whole), 5, r"must be a list \[...\], not a number"),
        (list_of(whole), [1, "x"], "must be a whole number, not a text"),
        (set_of(whole), "x", "must be a list"),
        (TEXT, "", "must be one printable line"),
        (TEXT, "   ", "must be one printable line"),
        (TEXT, "two\nlines", "must be one printable line"),
        (TEXT, "x" * 251, "longer than 250 bytes"),
        (TEXT, "\u00e9" * 126, "longer than 250 bytes"),
        (TEXT, "{limit}", r"{limit} is no field here; use {ref}, {user}"),
        (TEXT, "{}", r"{} is no field here"),
        (TEXT, "{ref!r}", r"{ref!r} is no field here"),
        (TEXT, "{user.__class__}", "is no field here"),
        (TEXT, "ref {ref", "has a brace without its other half"),
        (TEXT, "ref ref}", "has a brace without its other half"),
    ],
)
def test_wrong_values_say_why(read: Callable[[Any], Any], value: Any, why: str) -> None:
    """One clear reason each, and no other exception: the configuration adds the place."""
    with pytest.raises(ValueError, match=why):
        read(value)


def test_networks_are_a_set_that_answers() -> None:
    """What [site] networks and allow_from are."""
    found = networks(["192.0.2.0/24", "2001:db8::/32"])
    assert "192.0.2.77" in found
    assert "198.51.100.1" not in found


def test_a_setting_without_a_default_is_required() -> None:
    """And each carries its reader, its help and its key."""

    @dataclass(frozen=True)
    class Options:
        name: str = setting(string, help="The name.")
        direction: str = setting(string, "any", help="The direction.", key="for")

    name, direction = fields(Options)
    assert (name.default, name.metadata["help"], name.metadata["key"]) == (MISSING, "The name.", "")
    assert (direction.default, direction.metadata["key"]) == ("any", "for")
    assert direction.metadata["read"] is string


def test_fill_replaces_fields_and_nothing_else() -> None:
    """A value is never read as a template, percent signs and lone braces are text."""
    assert fill("{a}{b} {a}", {"a": "(b)", "b": "2"}) == "(b)2 (b)"
    # What a stranger wrote is no field, least of all that of the reference, which is filled in last.
    assert fill("{a} {ref}", {"a": "{ref}{a}", "ref": "{ref}"}) == "(ref)(a) {ref}"
    assert fill("100% {", {}) == "100% {"
    assert fill("} {a}", {"a": "1"}) == "} 1"
    assert fill("", {}) == ""
    with pytest.raises(KeyError):
        fill("{a}", {"b": "1"})


@given(st.text("ab{}% ", max_size=30), st.text(max_size=10))
def test_any_template_fills_or_is_refused_when_it_is_read(text: str, value: str) -> None:
    """What template() accepted can be filled for every request, later, with any value."""
    try:
        accepted = template("a", "b")(text)
    except ValueError:
        return
    assert len(fill(accepted, {"a": value, "b": value})) <= len(text) + len(text) * len(value)
