"""What the admin has said, in memory: put, dropped, expired to the millisecond, the most specific first."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.match import parse_network
from policyd.steering import (
    ALLOW_KINDS,
    BAN_KINDS,
    EVERY_CHECK,
    ROWS,
    TABLES,
    CheckMode,
    Entry,
    Grant,
    Listing,
    Milestone,
    Row,
    SenderRight,
    Steering,
    Suspension,
    UserLimit,
    canonical_value,
    client_network,
    network_value,
)
from policyd.units import DAY, HOUR, Limit

ALICE = "alice@example.org"


def entry(kind: str, value: str, expires_at: int = 0) -> Entry:
    return Entry(kind, value, "reason", "admin", 1, expires_at)


def user_limit(amount: int, unit: str = "recipients", window: int = HOUR, expires_at: int = 0) -> UserLimit:
    return UserLimit(ALICE, unit, window, amount, "", "admin", 1, expires_at)


def grant(
    number: int, amount: int, unit: str = "recipients", expires_at: int = 0, user: str = ALICE
) -> Grant:
    return Grant(number, user, unit, amount, "", "admin", 1, expires_at)


def listing(*entries: Entry) -> Listing:
    made = Listing()
    for one in entries:
        made.put(one)
    return made


# --- rows ---------------------------------------------------------------------------------------------------------

SAMPLE_ROWS: dict[str, tuple[Row, tuple[str, ...]]] = {
    "ban": (entry("user", ALICE), ("user", ALICE)),
    "allow": (entry("client", "192.0.2.0/24"), ("client", "192.0.2.0/24")),
    "user_limit": (user_limit(5), (ALICE, "recipients", str(HOUR))),
    "user_grant": (grant(7, 100), ("7",)),
    "check_mode": (CheckMode("quota", "shadow", "", "admin", 1, 0), ("quota",)),
    "sender_right": (
        SenderRight(ALICE, "@example.net", "", "admin", 1, 0),
        (ALICE, "@example.net"),
    ),
    "greylist_allow": (entry("recipient", ALICE), ("recipient", ALICE)),
    "suspension": (Suspension(ALICE, "hijacked", "9 networks", "{}", 1, "7F3K2", "policyd", 1, 0), (ALICE,)),
    "milestone": (Milestone("learned", "", "admin", 1, 0), ("learned",)),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_row_is_put_replaced_and_dropped(table: str) -> None:
    """Each table on its own; the key is text, as the change table writes it."""
    row, key = SAMPLE_ROWS[table]
    assert type(row) is ROWS[table]
    steering = Steering()
    steering.put(table, row)
    assert steering.rows(table) == [row]
    newer = row._replace(reason="newer")
    steering.put(table, newer)
    assert steering.rows(table) == [newer]
    assert all(not steering.rows(other) for other in TABLES if other != table)
    steering.drop(table, key)
    assert steering.rows(table) == []
    steering.drop(table, key)
    assert steering.rows(table) == []


def test_an_empty_steering_leaves_nothing_behind() -> None:
    """What was put and dropped again uses no memory: bans come and go for years."""
    steering, fresh = Steering(), Steering()
    for table, (row, key) in SAMPLE_ROWS.items():
        steering.put(table, row)
        steering.drop(table, key)
    for name in ("user_limits", "grants", "grants_of", "modes"):
        assert getattr(steering, name) == getattr(fresh, name)
    assert steering.allows.entries == {}
    assert len(steering.allows._networks) == 0


def test_a_grant_that_changed_its_user_leaves_the_old_one() -> None:
    """A replaced row counts once."""
    steering = Steering()
    steering.put("user_grant", grant(7, 100))
    steering.put("user_grant", grant(7, 50, user="bob@example.org"))
    assert steering.granted(ALICE, 0) == {}
    assert steering.granted("bob@example.org", 0) == {"recipients": 50}


def test_dropping_one_limit_leaves_the_others() -> None:
    """By user, unit and window."""
    steering = Steering()
    steering.put("user_limit", user_limit(5))
    steering.put("user_limit", user_limit(50, window=DAY))
    steering.drop("user_limit", (ALICE, "recipients", str(HOUR)))
    steering.drop("user_limit", (ALICE, "messages", str(DAY)))
    assert steering.limits_of(ALICE, (), 0) == (Limit(50, "recipients", DAY),)


# --- expiry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now", "holds"), [(0, True), (999, True), (1_000, False), (1_001, False)])
def test_everything_ends_at_its_millisecond(now: int, holds: bool) -> None:
    """In force until the millisecond before, for every kind of row."""
    steering = Steering()
    for table in ("ban", "allow"):
        steering.put(table, entry("user", ALICE, 1_000))
        steering.put(table, entry("domain", "example.org", 1_000))
        steering.put(table, entry("client", "192.0.2.0/24", 1_000))
    steering.put("user_limit", user_limit(5, expires_at=1_000))
    steering.put("user_grant", grant(1, 100, expires_at=1_000))
    steering.put("check_mode", CheckMode("quota", "shadow", "", "admin", 1, 1_000))
    for found in (steering.bans, steering.allows):
        assert (found.exact("user", ALICE, now) is not None) is holds
        assert (found.domain("mail.example.org", now) is not None) is holds
        assert (found.client("192.0.2.1", now) is not None) is holds
    assert (steering.limits_of(ALICE, (), now) != ()) is holds
    assert (steering.granted(ALICE, now) != {}) is holds
    assert (steering.mode_of("quota", now) == "shadow") is holds


def test_zero_means_until_taken_back() -> None:
    """No expiry is not an expiry in 1970."""
    assert entry("user", ALICE, 0).holds(2**53)
    steering = Steering()
    steering.put("check_mode", CheckMode(EVERY_CHECK, "shadow", "", "admin", 1, 0))
    steering.put("user_grant", grant(1, 5))
    assert steering.mode_of(EVERY_CHECK, 2**53) == "shadow"
    assert steering.granted(ALICE, 2**53) == {"recipients": 5}


def test_an_expired_entry_does_not_hide_a_wider_one() -> None:
    """The ban of the address ended, that of its network goes on; the same with domains."""
    found = listing(
        entry("client", "192.0.2.1", 10),
        entry("client", "192.0.2.0/24"),
        entry("domain", "mail.example.org", 10),
        entry("domain", "example.org"),
    )
    assert found.client("192.0.2.1", 9) == entry("client", "192.0.2.1", 10)
    assert found.client("192.0.2.1", 10) == entry("client", "192.0.2.0/24")
    assert found.domain("mail.example.org", 9) == entry("domain", "mail.example.org", 10)
    assert found.domain("mail.example.org", 10) == entry("domain", "example.org")


# --- domains and networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "domain", "found"),
    [
        (["example.org"], "example.org", "example.org"),
        (["example.org"], "mail.example.org", "example.org"),
        (["example.org"], "a.b.c.example.org", "example.org"),
        (["example.org"], "notexample.org", None),
        (["example.org"], "org", None),
        ([".example.org"], "example.org", None),
        ([".example.org"], "mail.example.org", ".example.org"),
        ([".example.org"], "a.b.example.org", ".example.org"),
        ([".example.org", "example.org"], "example.org", "example.org"),
        (["org", "example.org", "mail.example.org"], "mail.example.org", "mail.example.org"),
        (["org", "example.org"], "mail.example.org", "example.org"),
        (["org"], "mail.example.org", "org"),
        ([".org"], "example.org", ".org"),
        (["localhost"], "localhost", "localhost"),
        # An empty label makes no other domain of it.
        (["example.org"], ".example.org", "example.org"),
        (["example.org"], "..example.org", "example.org"),
        (["example.org"], "a..example.org", "example.org"),
        (["example.org"], "", None),
        (["example.org"], ".", None),
        ([], "example.org", None),
    ],
)
def test_domains_and_their_parents(entries: list[str], domain: str, found: str | None) -> None:
    """A domain covers itself and what is below; with a leading dot only what is below. The nearest wins."""
    hit = listing(*(entry("domain", value) for value in entries)).domain(domain, 0)
    assert (hit.value if hit else None) == found


def test_a_host_name_is_found_among_clients_only() -> None:
    """A domain's ban is about senders, a client's about who connects."""
    found = listing(entry("client", "example.org"), entry("domain", "example.net"))
    assert found.domain("mail.example.org", 0, kind="client") == entry("client", "example.org")
    assert found.domain("mail.example.org", 0) is None
    assert found.domain("mail.example.net", 0, kind="client") is None


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.2", "192.0.2.0/24"),
        ("192.0.3.1", "192.0.0.0/16"),
        ("198.51.100.1", None),
        ("2001:db8:1:2::1", "2001:db8:1:2::1"),
        ("2001:DB8:1:2:0::1", "2001:db8:1:2::1"),
        ("2001:db8:1:2::2", "2001:db8:1:2::/64"),
        ("2001:db8:2::1", "2001:db8::/32"),
        ("2001:db9::1", None),
        ("unknown", None),
        ("", None),
        ("example.org", None),
    ],
)
def test_the_most_specific_network_answers(address: str, found: str | None) -> None:
    """IPv4, IPv6 and IPv4 written as IPv6."""
    values = (
        "192.0.0.0/16", "192.0.2.0/24", "192.0.2.1", "2001:db8::/32", "2001:db8:1:2::/64", "2001:db8:1:2::1", "example.org",
    )  # fmt: skip
    hit = listing(*(entry("client", canonical_value("client", value)) for value in values)).client(address, 0)
    assert (hit.value if hit else None) == found


def test_a_dropped_network_is_not_found() -> None:
    """Nor does it hide the one around it; put again, it is found again."""
    found = listing(entry("client", "192.0.2.1"), entry("client", "192.0.2.0/24"))
    found.drop("client", "192.0.2.1")
    assert found.client("192.0.2.1", 0) == entry("client", "192.0.2.0/24")
    found.drop("client", "192.0.2.0/24")
    found.drop("client", "host.example.org")
    assert found.client("192.0.2.1", 0) is None
    found.put(entry("client", "host.example.org"))
    found.put(entry("client", "192.0.2.1"))
    found.drop("client", "host.example.org")
    assert list(found) == [entry("client", "192.0.2.1")]
    assert found.client("192.0.2.1", 0) is not None


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_network_has_one_text(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> None:
    """However it was written, the same ban; and its text reads back as the same network."""
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    value = canonical_value("client", str(network).upper())
    assert canonical_value("client", value) == value
    back = client_network(value)
    assert back is not None
    assert network_value(back) == value
    assert back == parse_network(str(network))


# --- canonical values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("user", " Alice@Example.ORG ", ALICE),
        ("user", "alice@example.org.", ALICE),
        ("user", "alice", "alice"),
        ("user", "cert:AB:CD", "cert:ab:cd"),
        ("user", "client:192.0.2.1", "client:192.0.2.1"),
        ("sender", "jose\u0301@Example.org", "jos\u00e9@example.org"),
        ("sender", "<>", ""),
        ("sender", "alice@example.org.", ALICE),
        ("recipient", "Bob@example.net", "bob@example.net"),
        ("domain", "Example.ORG.", "example.org"),
        ("domain", "@example.org", "example.org"),
        ("domain", ".example.org", ".example.org"),
        ("client", "192.0.2.1/32", "192.0.2.1"),
        ("client", "192.0.2.0/24", "192.0.2.0/24"),
        ("client", "::ffff:192.0.2.1", "192.0.2.1"),
        ("client", "[2001:DB8::1]", "2001:db8::1"),
        ("client", "2001:db8::/64", "2001:db8::/64"),
        ("client", "Mail.Example.org.", "mail.example.org"),
        ("client", ".example.org", ".example.org"),
        ("client", "163.com", "163.com"),
        ("client", "1and1.example", "1and1.example"),
        ("client", "dead.beef", "dead.beef"),
        ("client", "localhost", "localhost"),
    ],
)
def test_canonical_values(kind: str, text: str, value: str) -> None:
    """One form for what an admin types and what Postfix sends; it is stable."""
    assert canonical_value(kind, text) == value
    if value:
        assert canonical_value(kind, value) == value


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("user", "", "is no user"),
        ("user", "a b", "is no user"),
        ("user", "a\nb", "is no user"),
        ("user", "x" * 321, "is no user"),
        ("sender", "example.org", "use 'domain example.org'"),
        ("sender", "@example.org", "use 'domain example.org'"),
        ("recipient", "bob", "is no address"),
        ("domain", "alice@example.org", "is no domain"),
        ("domain", ".", "is no domain"),
        ("domain", "*.example.org", r"write .example.org for what is below it, example.org for itself, too"),
        ("domain", "exam*.org", "is no domain"),
        ("domain", "@", "is no domain"),
        ("domain", "192.0.2.0/24", "is no domain"),
        ("client", "192.0.2.1/24", "write 192.0.2.0/24"),
        ("client", "192.0.2.256", "is no IP address"),
        ("client", "192.0.2", "is no IP address"),
        ("client", "192.0.2.", "is no IP address"),
        ("client", "alice@example.org", "is no IP address"),
        ("client", ".", "is no IP address"),
        ("client", "a..b", "is no IP address"),
        ("client", "fe80::1%eth0", "has a zone"),
    ],
)
def test_what_cannot_be_a_value_says_why(kind: str, text: str, why: str) -> None:
    """An entry that could never match is refused when it is made."""
    with pytest.raises(ValueError, match=why):
        canonical_value(kind, text)


@given(
    st.sampled_from([*BAN_KINDS, *ALLOW_KINDS]),
    st.text(max_size=40) | st.from_regex(r"[0-9a-f.:/\[\]%]{1,20}"),
)
def test_any_text_is_a_value_or_a_value_error(kind: str, text: str) -> None:
    """Never another exception, and a value is always printable."""
    try:
        value = canonical_value(kind, text)
    except ValueError:
        return
    assert value == "" or value.isprintable()


# --- limits, grants, modes ----------------------------------------------------------------------------------------

BASE = (Limit(20, "recipients", HOUR), Limit(50, "recipients", DAY), Limit(10**6, "bytes", DAY))


def test_own_limits_replace_the_same_unit_and_window_or_add() -> None:
    """The others stand."""
    steering = Steering()
    assert steering.limits_of(ALICE, BASE, 0) is BASE
    steering.put("user_limit", user_limit(100))
    steering.put("user_limit", user_limit(5, "messages"))
    assert steering.limits_of(ALICE, BASE, 0) == (
        Limit(100, "recipients", HOUR),
        *BASE[1:],
        Limit(5, "messages", HOUR),
    )
    assert steering.limits_of("bob@example.org", BASE, 0) == BASE


def test_unset_takes_a_limit_away() -> None:
    """Also one that is not there; zero is a limit of zero."""
    steering = Steering()
    steering.put("user_limit", user_limit(-1))
    steering.put("user_limit", user_limit(-1, "messages"))
    steering.put("user_limit", user_limit(0, window=DAY))
    assert steering.limits_of(ALICE, BASE, 0) == (Limit(0, "recipients", DAY), BASE[2])


def test_an_expired_own_limit_gives_the_tiers_back() -> None:
    """The one under it, not none."""
    steering = Steering()
    steering.put("user_limit", user_limit(-1, expires_at=5))
    steering.put("user_limit", user_limit(1_000, window=DAY, expires_at=9))
    assert steering.limits_of(ALICE, BASE, 5) == (BASE[0], Limit(1_000, "recipients", DAY), BASE[2])
    assert steering.limits_of(ALICE, BASE, 9) == BASE


def test_grants_add_up_per_unit_and_end_one_by_one() -> None:
    """Each with its own end."""
    steering = Steering()
    steering.put("user_grant", grant(1, 100, expires_at=10))
    steering.put("user_grant", grant(2, 50, expires_at=20))
    steering.put("user_grant", grant(3, 7, "messages"))
    assert steering.granted(ALICE, 9) == {"recipients": 150, "messages": 7}
    assert steering.granted(ALICE, 10) == {"recipients": 50, "messages": 7}
    assert steering.granted(ALICE, 20) == {"messages": 7}
    assert steering.granted("bob@example.org", 0) == {}
    steering.drop("user_grant", ("3",))
    assert steering.granted(ALICE, 20) == {}
    assert [row.id for row in steering.rows("user_grant") if isinstance(row, Grant)] == [1, 2]


def test_a_mode_is_one_checks_own() -> None:
    """Unknown names have none."""
    steering = Steering()
    steering.put("check_mode", CheckMode("quota", "enforce", "", "admin", 1, 0))
    assert steering.mode_of("quota", 0) == "enforce"
    assert steering.mode_of("bans", 0) == ""
    assert steering.mode_of(EVERY_CHECK, 0) == ""
