"""Which counter and which limits a request is tested against; the counting itself is settle's."""

from __future__ import annotations

from typing import Any

import pytest

from policyd.accounts import Account
from policyd.answer import DUNNO
from policyd.checks import Context
from policyd.checks.quota import SCOPES, TEXT_FIELDS, Check, Options
from policyd.inquiry import Inquiry
from policyd.match import NetworkSet, parse_network
from policyd.opinion import Quota
from policyd.request import Request, Site
from policyd.steering import Grant, Steering, UserLimit
from policyd.tiers import Tier, Tiers
from policyd.trial import limits_of
from policyd.units import DAY, HOUR, Limit

ALICE = "alice@example.org"
LOGIN = {"sasl_method": "plain", "sasl_username": ALICE}
SITE = Site(domains=frozenset({"example.org"}), networks=NetworkSet([parse_network("192.0.2.0/24")]))
HOURLY = Limit(20, "recipients", HOUR)
TIERS = Tiers(
    "new", {"new": Tier("new", (HOURLY,)), "bulk": Tier("bulk", (), frozenset({"news@example.org"}))}
)


def check(direction: str = "any", tiers: Tiers = TIERS, **options: Any) -> Check:
    readers = {name: field.metadata["read"] for name, field in Options.__dataclass_fields__.items()}
    made = Options(**{name: readers[name](value) for name, value in options.items()})
    return Check(made, Context("quota", direction, SITE, tiers))


def request(stage: str = "END-OF-MESSAGE", **attributes: str) -> Request:
    return SITE.request(
        {
            "protocol_state": stage,
            "client_address": "203.0.113.9",
            "sender": "Carol@Example.org",
            "recipient": "bob@example.com",
            **attributes,
        }
    )


def intent(one: Check, of: Request, steering: Steering | None = None, now: int = 5) -> Quota | None:
    with pytest.raises(StopIteration) as stop:
        one.check(of, now, steering or Steering(), Inquiry()).send(None)
    opinion = stop.value.value
    if opinion is None:
        return None
    assert (opinion.answer, opinion.final, opinion.standing) == (DUNNO, False, None), (
        "settle decides, not the check"
    )
    quota = opinion.quota
    assert isinstance(quota, Quota)
    # As settle does it: which tier it is in is known then.
    limits = limits_of(quota, steering or Steering(), Account(quota.value), now)
    return quota._replace(limits=limits, tiers=None) if limits else None


def test_the_default_is_per_user_with_the_limits_of_the_tier() -> None:
    """``use = "quota"`` and nothing else."""
    assert intent(check(), request(**LOGIN)) == Quota(
        "user",
        ALICE,
        frozenset({"example.org"}),
        (HOURLY,),
        {},
        True,
        "defer",
        "Sending limit reached; {used} of {limit} {unit} per {window}, room again at {until}. ref {ref}",
    )


@pytest.mark.parametrize(
    ("per", "attributes", "value"),
    [
        ("user", LOGIN, ALICE),
        (
            "user",
            {"ccert_subject": "x", "ccert_pubkey_fingerprint": "AB", "policy_context": "submission"},
            "cert:ab",
        ),
        ("user", {"client_address": "192.0.2.7"}, "client:192.0.2.7"),
        ("user-domain", LOGIN, "example.org"),
        ("user-domain", {"sasl_method": "plain", "sasl_username": "alice"}, None),
        ("sender", LOGIN, "carol@example.org"),
        ("sender", {**LOGIN, "sender": "carol@example.org."}, "carol@example.org"),
        ("sender", {**LOGIN, "sender": ""}, "<>"),
        ("sender-domain", LOGIN, "example.org"),
        ("sender-domain", {**LOGIN, "sender": ""}, None),
        ("client", {}, "203.0.113.9"),
        ("client", {"client_address": "::ffff:203.0.113.9"}, "203.0.113.9"),
        ("client", {"client_address": "2001:db8:1:2:3::4"}, "2001:db8:1:2::/64"),
        ("client", {"client_address": "unknown"}, None),
        ("client", LOGIN, "203.0.113.9"),
        ("server", LOGIN, "server"),
    ],
)
def test_whose_counter_it_is(per: str, attributes: dict[str, str], value: str | None) -> None:
    """Each scope; a request that has no such value is not counted in it."""
    quota = intent(check(per=per, limits=["20 recipients per 1h"]), request(**attributes))
    if value is None:
        assert quota is None
    else:
        assert quota is not None
        assert (quota.scope, quota.value) == (per, value)


@pytest.mark.parametrize("per", [scope for scope in SCOPES if scope != "client"])
def test_only_submission_is_counted_but_for_clients(per: str) -> None:
    """An outsider who forges alice's address must not use up her quota."""
    one = check(per=per, limits=["20 recipients per 1h"])
    assert intent(one, request(sender=ALICE, sasl_username=ALICE)) is None
    assert intent(one, request(**LOGIN)) is not None


@pytest.mark.parametrize(
    ("direction", "scope"), [("any", "client"), ("mx", "client:mx"), ("submission", "client:submission")]
)
def test_clients_are_counted_apart_by_direction(direction: str, scope: str) -> None:
    """A webmail's submission does not use up what its mail exchanger may bring, unless the admin wants one count."""
    quota = intent(check(direction, per="client", limits=["5 messages per 1m"]), request())
    assert quota is not None
    assert quota.scope == scope


def test_the_accounts_own_limits_stand_over_the_tiers() -> None:
    """`policyctl quota set|unset`, until they end."""
    steering = Steering()
    steering.put("user_limit", UserLimit(ALICE, "recipients", HOUR, 500, "", "", 1, 100))
    steering.put("user_limit", UserLimit(ALICE, "messages", DAY, 9, "", "", 1, 100))
    quota = intent(check(), request(**LOGIN), steering, now=99)
    assert quota is not None
    assert quota.limits == (Limit(500, "recipients", HOUR), Limit(9, "messages", DAY))
    quota = intent(check(), request(**LOGIN), steering, now=100)
    assert quota is not None
    assert quota.limits == (HOURLY,)


def test_limits_of_the_section_hold_for_everybody() -> None:
    """They are not the tier's; own limits do not replace them."""
    steering = Steering()
    steering.put("user_limit", UserLimit(ALICE, "recipients", HOUR, 500, "", "", 1, 0))
    quota = intent(check(limits=["5 recipients per 1h", "9MB per 1d"]), request(**LOGIN), steering)
    assert quota is not None
    assert quota.limits == (Limit(5, "recipients", HOUR), Limit(9_000_000, "bytes", DAY))


def test_grants_widen_the_accounts_windows_only() -> None:
    """Per user, by unit, while they last; the server's limit is nobody's to widen."""
    steering = Steering()
    steering.put("user_grant", Grant(1, ALICE, "recipients", 5_000, "", "", 1, 100))
    for now, grants in ((99, {"recipients": 5_000}), (100, {})):
        for options in ({}, {"limits": ["5 recipients per 1h"]}):
            quota = intent(check(**options), request(**LOGIN), steering, now)
            assert quota is not None
            assert quota.grants == grants
    for per in SCOPES[1:]:
        quota = intent(check(per=per, limits=["5 recipients per 1h"]), request(**LOGIN), steering)
        assert quota is not None
        assert quota.grants == {}


def test_an_account_without_limits_is_not_counted() -> None:
    """A tier without limits, no tiers at all, or all of them unset."""
    assert intent(check(), request(sasl_method="plain", sasl_username="news@example.org")) is None
    assert intent(check(tiers=Tiers()), request(**LOGIN)) is None
    steering = Steering()
    steering.put("user_limit", UserLimit(ALICE, "recipients", HOUR, -1, "", "", 1, 0))
    assert intent(check(), request(**LOGIN), steering) is None
    assert intent(check(), request(**LOGIN)) is not None


def test_a_limit_of_zero_is_a_limit() -> None:
    """Nothing may be sent."""
    quota = intent(check(limits=["0 messages per 1h"]), request(**LOGIN))
    assert quota is not None
    assert quota.limits == (Limit(0, "messages", HOUR),)


@pytest.mark.parametrize(
    ("count_at", "stage", "counts"),
    [
        ("end-of-message", "RCPT", False),
        ("end-of-message", "END-OF-MESSAGE", True),
        ("rcpt", "RCPT", True),
        # What was counted at RCPT must not need room a second time.
        ("rcpt", "END-OF-MESSAGE", None),
    ],
)
def test_a_mail_is_counted_at_one_stage(count_at: str, stage: str, counts: bool | None) -> None:
    """At END-OF-MESSAGE with the real numbers; before it only "no room at all" refuses."""
    quota = intent(check(count_at=count_at), request(stage, **LOGIN))
    assert (None if quota is None else quota.counts) is counts
    assert Check.stages == {"RCPT", "END-OF-MESSAGE"}


@pytest.mark.parametrize(
    ("direction", "options", "needs"),
    [
        ("any", {"count": "all"}, {"submission": {"END-OF-MESSAGE"}}),
        ("submission", {"count": "external"}, {"submission": {"RCPT", "END-OF-MESSAGE"}}),
        ("submission", {"count": "all", "count_at": "rcpt"}, {"submission": {"RCPT"}}),
        ("submission", {"count_at": "rcpt"}, {"submission": {"RCPT"}}),
        ("mx", {"count": "all", "per": "client"}, {"mx": {"END-OF-MESSAGE"}}),
        (
            "any",
            {"count": "all", "per": "client"},
            {"submission": {"END-OF-MESSAGE"}, "mx": {"END-OF-MESSAGE"}},
        ),
        ("any", {"count": "all", "per": "server"}, {"submission": {"END-OF-MESSAGE"}}),
    ],
)
def test_it_says_which_stages_it_cannot_do_without(
    direction: str, options: dict[str, str], needs: dict[str, set[str]]
) -> None:
    """A rule whose stage never arrives counts nothing: policyd must be able to say so."""
    made = check(direction, limits=["5 messages per 1m"], **options)
    assert made.needs == needs


def test_internal_mail_is_left_out_or_not() -> None:
    """``count``: the site's own domains, or nothing to leave out."""
    external, everything = (intent(check(count=count), request(**LOGIN)) for count in ("external", "all"))
    assert external is not None
    assert everything is not None
    assert external.external == {"example.org"}
    assert everything.external is None


@pytest.mark.parametrize("on_breach", ["defer", "reject", "hold"])
def test_what_a_breach_means_is_handed_on(on_breach: str) -> None:
    """With the text of the section."""
    quota = intent(check(on_breach=on_breach, text="Genug, {user}; {ref}"), request(**LOGIN))
    assert quota is not None
    assert (quota.on_breach, quota.text) == (on_breach, "Genug, {user}; {ref}")


def test_pause_makes_it_shadow() -> None:
    """It is not steadfast."""
    assert not Check.steadfast


@pytest.mark.parametrize("per", [scope for scope in SCOPES if scope != "client"])
def test_a_section_that_would_count_nothing_is_refused(per: str) -> None:
    """Mail from outside has no account: the admin is told what to write."""
    with pytest.raises(ValueError, match="write for = 'submission', or per = 'client'"):
        check("mx", per=per, limits=["1 messages per 1h"])
    assert check("mx", per="client", limits=["1 messages per 1h"])
    assert check("submission", per=per, limits=["1 messages per 1h"])


@pytest.mark.parametrize("per", [scope for scope in SCOPES if scope != "user"])
def test_tiers_are_per_user(per: str) -> None:
    """Any other scope needs limits of its own."""
    with pytest.raises(ValueError, match=f"per = '{per}' needs limits; tiers are per user"):
        check(per=per)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"per": "account"}, "is none of user, user-domain"),
        ({"limits": "20 recipients per 1h"}, "must be a list"),
        ({"limits": ["20 per 1h"]}, "does not say what it counts"),
        ({"count": "internal"}, "is none of external, all"),
        ({"on_breach": "discard"}, "is none of defer, reject, hold"),
        ({"count_at": "data"}, "is none of end-of-message, rcpt"),
        ({"text": "{sender}"}, "is no field here"),
    ],
)
def test_wrong_options_say_why(options: dict[str, Any], why: str) -> None:
    """When the configuration is read."""
    with pytest.raises(ValueError, match=why):
        check(**options)


def test_every_field_may_stand_in_the_text() -> None:
    """As the documentation lists them."""
    text = " ".join("{" + name + "}" for name in TEXT_FIELDS)
    assert check(text=text)
    assert set(TEXT_FIELDS) == {"unit", "used", "limit", "window", "until", "ref", "user"}
