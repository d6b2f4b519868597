"""What policyctl postfix proposes: policyd asked once, at both stages, where nothing hides it, whatever was there before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.errors import UserError
from policyd.postfix import lists
from policyd.postfix.addresses import choose, is_ours, resolved
from policyd.postfix.settings import END_OF_DATA, RECIPIENT, Entry, Settings
from tests.postfix.made import ADDRESSES, QUEUE, SOCKET, SUBMISSION, changed, planned, settings


def asked(found: Settings, entry: Entry | None, name: str) -> list[int]:
    return [at for at, item in enumerate(found.items(entry, name)) if is_ours(item, ADDRESSES.all, QUEUE)]


def names(found: Settings, entry: Entry | None = None, name: str = RECIPIENT) -> list[str]:
    return [item.name for item in found.items(entry, name)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "reject_unlisted_recipient, $policyd_mx"),
        (
            "permit_mynetworks, reject_unauth_destination",
            "$policyd_mx, permit_mynetworks, reject_unauth_destination",
        ),
        (
            "reject_unauth_destination, reject_rbl_client bl.example, permit_sasl_authenticated, permit",
            "reject_unauth_destination, reject_rbl_client bl.example, $policyd_mx, permit_sasl_authenticated, permit",
        ),
        (
            "reject_unauth_destination check_client_access\thash:/etc/postfix/own reject",
            "reject_unauth_destination, $policyd_mx, check_client_access hash:/etc/postfix/own, reject",
        ),
        (
            "warn_if_reject reject_unknown_helo_hostname, permit_dnswl_client list.example=127.0.0.2",
            "warn_if_reject reject_unknown_helo_hostname, $policyd_mx, permit_dnswl_client list.example=127.0.0.2",
        ),
        (
            "check_policy_service { inet:127.0.0.1:10023, timeout=10s }, reject_unauth_pipelining",
            "check_policy_service { inet:127.0.0.1:10023, timeout=10s }, reject_unauth_pipelining, $policyd_mx",
        ),
        (
            f"permit_mynetworks, check_policy_service {SOCKET}, check_policy_service {SOCKET}",
            "$policyd_mx, permit_mynetworks",
        ),
        (
            f"reject_unauth_destination, check_policy_service unix:{QUEUE}/policyd/policy.sock, permit",
            None,
        ),
    ],
)
def test_policyd_stands_before_what_can_permit_and_behind_what_only_refuses(
    before: str, after: str | None
) -> None:
    """A permit before policyd would hide it; a refusal before it spares a question. What is right is left alone."""
    change = {each.name: each.after for each in planned(settings({RECIPIENT: before})).changes}
    assert change.get(RECIPIENT) == after


def test_lists_behind_a_parameter_or_a_class_are_looked_into() -> None:
    """$-references and restriction classes: what hides policyd in them hides it as well."""
    main = {
        RECIPIENT: "reject_non_fqdn_recipient, $usual, reject_unlisted_recipient",
        "usual": "ours_only, reject_unauth_destination",
        "smtpd_restriction_classes": "ours_only",
        "ours_only": "permit_mynetworks",
    }
    change = {each.name: each.after for each in planned(settings(main)).changes}
    assert change[RECIPIENT] == "reject_non_fqdn_recipient, $policyd_mx, $usual, reject_unlisted_recipient"


def test_submission_entries_get_lists_of_their_own() -> None:
    """587 and 465 as Debian ships them: asked at both stages before permit_sasl_authenticated; strangers are not asked about."""
    after = changed(settings({}, {"smtp": {}, "submission": SUBMISSION, "submissions": SUBMISSION}))
    for entry in after.entries[1:]:
        assert entry.raw[RECIPIENT] == "$mua_recipient_restrictions"
        assert names(after, entry) == ["check_policy_service", "permit_sasl_authenticated", "reject"]
        assert names(after, entry, END_OF_DATA) == ["check_policy_service"]
        assert entry.raw["smtpd_relay_restrictions"] == "permit_sasl_authenticated,reject"
        assert "policy_context=submission" in after.of(entry, RECIPIENT)
    assert "policy_context=mx" in after.of(after.entries[0], END_OF_DATA)
    assert planned(after).changes == []


def test_two_submission_entries_that_differ_keep_their_difference() -> None:
    """One list is not put over another; postconf -P takes no spaces, so each has a parameter of its own."""
    other = {**SUBMISSION, RECIPIENT: "reject_non_fqdn_recipient,permit_sasl_authenticated,reject"}
    after = changed(settings({}, {"submission": SUBMISSION, "smtps": other}))
    assert names(after, after.entries[1])[:2] == ["reject_non_fqdn_recipient", "check_policy_service"]
    assert names(after, after.entries[0])[:1] == ["check_policy_service"]
    assert planned(after).changes == []


def test_a_parameter_that_an_entry_names_is_changed_where_it_stands() -> None:
    """Whoever has mua_recipient_restrictions already keeps it, and what is in it."""
    main = {"mua_recipient_restrictions": "reject_unknown_sender_domain, permit_sasl_authenticated, reject"}
    entry = {**SUBMISSION, RECIPIENT: "$mua_recipient_restrictions"}
    change = {
        (each.service, each.name): each for each in planned(settings(main, {"submission": entry})).changes
    }
    assert ("submission/inet", RECIPIENT) not in change
    assert change["", "mua_recipient_restrictions"].after == (
        "reject_unknown_sender_domain, $policyd_submission, permit_sasl_authenticated, reject"
    )
    assert change["", "mua_recipient_restrictions"].before == main["mua_recipient_restrictions"]


def test_what_a_filter_gives_back_is_not_asked_about() -> None:
    """Mail that comes in twice is counted once, and the listener keeps what it refused by itself."""
    filters = {"content_filter": "", "mynetworks": "127.0.0.0/8"}
    found = settings(
        {RECIPIENT: "permit_mynetworks, reject_unauth_destination"},
        {
            "smtp": {},
            "127.0.0.1:10025": filters,
            "127.0.0.1:10026": {**filters, RECIPIENT: "permit_mynetworks,reject"},
        },
    )
    after = changed(found)
    for entry in after.entries[1:]:
        assert not asked(after, entry, RECIPIENT)
        assert not asked(after, entry, END_OF_DATA)
    assert names(after, after.entries[1]) == ["permit_mynetworks", "reject_unauth_destination"]
    assert names(after, after.entries[2]) == ["permit_mynetworks", "reject"]
    assert planned(after).changes == []


RESTRICTIONS = st.lists(
    st.sampled_from(
        [
            "permit_mynetworks",
            "permit_sasl_authenticated",
            "reject_unauth_destination",
            "reject_rbl_client bl.example",
            "check_recipient_access hash:/etc/postfix/x",
            "check_policy_service { inet:127.0.0.1:10023, timeout=10s }",
            f"check_policy_service {SOCKET}",
            "warn_if_reject reject_unknown_client_hostname",
            "$usual",
            "reject",
            "permit",
        ]
    ),
    max_size=6,
)


@given(RESTRICTIONS, RESTRICTIONS, RESTRICTIONS)
def test_whatever_was_there_policyd_is_asked_once_and_a_second_run_changes_nothing(
    usual: list[str], recipient: list[str], own: list[str]
) -> None:
    """Idempotent over any lists: asked once at both stages on every port, never behind a permit, the rest in its order."""
    usual = [each for each in usual if each != "$usual"]
    main = {"usual": ", ".join(usual), RECIPIENT: ", ".join(recipient), END_OF_DATA: ", ".join(own)}
    found = settings(main, {"smtp": {}, "submission": {**SUBMISSION, RECIPIENT: ",".join(own)}})
    after = changed(found)
    for entry in after.entries:
        for name in (RECIPIENT, END_OF_DATA):
            (at,) = asked(after, entry, name)
            before = after.items(entry, name)[:at]
            assert not any(item.name in lists.HIDES for item in before)
    rest = [item for item in after.items(None, RECIPIENT) if not is_ours(item, ADDRESSES.all, QUEUE)]
    there = [item for item in found.items(None, RECIPIENT) if not is_ours(item, ADDRESSES.all, QUEUE)]
    assert rest == there or (not there and [item.name for item in rest] == ["reject_unlisted_recipient"])
    assert planned(after).changes == []


@given(st.text(alphabet="ab{}, \t=:$", max_size=30))
def test_no_value_is_too_odd_to_be_read(text: str) -> None:
    """A main.cf with a mistake is reported by Postfix; reading it never fails."""
    lists.items(text)
    lists.policy_service(text)


def test_the_options_of_a_policy_service_are_read_in_each_spelling() -> None:
    """postconf(5) allows spaces around =, and braces around a value that has some."""
    service = lists.policy_service(
        "{ unix:policyd/policy.sock, timeout = 10s, { default_action = 451 4.3.0 later, please } }"
    )
    assert service == (SOCKET, {"timeout": "10s", "default_action": "451 4.3.0 later, please"})
    assert lists.policy_service("inet:127.0.0.1:10047") == ("inet:127.0.0.1:10047", {})


def test_addresses_are_the_same_in_every_spelling() -> None:
    """Relative and absolute paths, localhost and 127.0.0.1, brackets."""
    for one, other in [
        ("unix:policyd/policy.sock", f"unix:{QUEUE}/policyd/policy.sock"),
        ("inet:localhost:10047", "inet:127.0.0.1:10047"),
        ("inet:10047", "inet:127.0.0.1:10047"),
        ("inet:[::1]:10047", "inet:[0:0::1]:10047"),
    ]:
        assert lists.same_address(one, [other], QUEUE)
    assert not lists.same_address("inet:127.0.0.1:10048", ["inet:127.0.0.1:10047"], QUEUE)


def test_a_socket_out_of_reach_is_not_proposed() -> None:
    """smtpd in its chroot sees the queue directory alone; a TCP port is taken instead, or it is an error with the remedy."""
    outside = ("unix:/run/policyd/policy.sock", "")
    assert choose([outside], QUEUE, chrooted=False).mx == "unix:/run/policyd/policy.sock"
    assert choose([outside, ("inet:127.0.0.1:10047", "")], QUEUE, chrooted=True).mx == "inet:127.0.0.1:10047"
    with pytest.raises(UserError, match=r"outside of .*listen = "):
        choose([outside], QUEUE, chrooted=True)
    with pytest.raises(UserError, match="nowhere"):
        choose([("inet:127.0.0.1:10047", "mx")], QUEUE, chrooted=True)


def test_a_listener_of_systemd_is_found_in_its_unit(tmp_path: object) -> None:
    """systemd:NAME says nothing to Postfix; the socket unit says where that is."""
    directory = str(tmp_path)
    with open(f"{directory}/policyd.socket", "w", encoding="utf-8") as unit:
        unit.write(f"[Socket]\nFileDescriptorName=policyd\nListenStream={QUEUE}/policyd/policy.sock\n")
    assert resolved([("systemd:policyd", "mx")], [directory]) == [(f"unix:{QUEUE}/policyd/policy.sock", "mx")]
    assert resolved([("systemd:other", "")], [directory]) == []
