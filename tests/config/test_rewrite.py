"""Single keys are set in a configuration file, and everything else in it stays."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.rewrite import with_keys

FILE = """\
# ours
[site]   # who we are
domains = ["example.org"]   # the "first" one
networks = [   # [all]
  "127.0.0.0/8",  # loopback
]

[server]
listen = ["inet:127.0.0.1:10047"]
"""


def test_comments_and_order_stay() -> None:
    """An admin finds the file as it was written, but for the values."""
    text = with_keys(FILE, "site", {"domains": ["example.net", "example.com"], "networks": ["::1/128"]})
    assert text == (
        '# ours\n[site]   # who we are\ndomains = ["example.net", "example.com"]   # the "first" one\n'
        'networks = ["::1/128"]\n\n[server]\nlisten = ["inet:127.0.0.1:10047"]\n'
    )


def test_a_key_and_a_table_that_are_missing_are_added() -> None:
    """Behind the head of its table, or as a table before the others, above their comments."""
    assert 'who we are\ndefault_domain = "example.org"\ndomains' in with_keys(
        FILE, "site", {"default_domain": "example.org"}
    )
    text = with_keys("include = []\n# the server\n[server]\n", "site", {"default_domain": "a.example"})
    assert text == 'include = []\n[site]\ndefault_domain = "a.example"\n\n# the server\n[server]\n'
    assert with_keys("", "site", {"domains": ["a.example"]}) == '[site]\ndomains = ["a.example"]\n\n'


def test_what_is_so_already_is_not_touched() -> None:
    """A second run changes nothing, not even the form."""
    assert with_keys(FILE, "site", {"domains": ["example.org"], "networks": ["127.0.0.0/8"]}) == FILE


def test_a_form_that_cannot_be_changed_is_refused() -> None:
    """An inline table is left to the admin instead of being broken."""
    with pytest.raises(ValueError, match="table of its own"):
        with_keys('site = { domains = ["a.example"], networks = [] }\n', "site", {"domains": ["b.example"]})


VALUES = st.one_of(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=12))


@given(VALUES, VALUES, st.sampled_from(["", "  # a ] comment \" '", "\t"]))
def test_any_value_can_take_the_place_of_any_other(
    before: str | list[str], after: str | list[str], comment: str
) -> None:
    """Whatever is in the strings, the file says what it is to say, and the rest of it the same as before."""
    start = with_keys(f'[other]\nx = 1\n[site]\nkey = "" {comment}\n[last]\ny = 2\n', "site", {"key": before})
    text = with_keys(start, "site", {"key": after})
    assert tomllib.loads(text) == {"other": {"x": 1}, "site": {"key": after}, "last": {"y": 2}}
    assert comment in text
