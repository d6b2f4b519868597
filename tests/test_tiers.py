"""Which tier an account is in."""

from __future__ import annotations

from policyd.tiers import Tier, Tiers
from policyd.units import DAY, HOUR, Limit

NEW = Tier("new", (Limit(20, "recipients", HOUR),))
STAFF = Tier("staff", (Limit(200, "recipients", HOUR),), frozenset({"@example.org", "client:192.0.2.1"}))
BULK = Tier("bulk", (Limit(5_000, "recipients", DAY),), frozenset({"news@example.org", "@lists.example.org"}))
TIERS = Tiers("new", {tier.name: tier for tier in (NEW, STAFF, BULK)})


def test_a_member_by_name_comes_before_its_domain_and_that_before_the_default() -> None:
    """Whatever the order of the tiers."""
    for tiers in (TIERS, Tiers("new", {tier.name: tier for tier in (BULK, STAFF, NEW)})):
        assert tiers.name_of("news@example.org") == "bulk"
        assert tiers.name_of("alice@example.org") == "staff"
        assert tiers.name_of("carol@lists.example.org") == "bulk"
        assert tiers.name_of("dave@example.com") == "new"
        assert tiers.name_of("client:192.0.2.1") == "staff"
        assert tiers.name_of("client:192.0.2.2") == "new"
        assert tiers.name_of("") == "new"


def test_a_domain_covers_only_itself() -> None:
    """Another customer's subdomain does not get the tier of the domain above it."""
    assert TIERS.name_of("bob@sub.example.org") == "new"
    assert TIERS.name_of("bob@notexample.org") == "new"


def test_of_two_tiers_with_the_same_domain_the_first_counts() -> None:
    """The order of the configuration decides."""
    other = Tier("other", (), frozenset({"@example.org"}))
    assert Tiers("", {"other": other, "staff": STAFF}).name_of("alice@example.org") == "other"


def test_limits_are_those_of_the_tier() -> None:
    """None without tiers, or when the default is not there."""
    assert TIERS.limits_of("news@example.org") == BULK.limits
    assert TIERS.limits_of("dave@example.com") == NEW.limits
    assert Tiers().limits_of("alice@example.org") == ()
    assert Tiers("gone").limits_of("alice@example.org") == ()
