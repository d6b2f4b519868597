"""The policy protocol as bytes: every message in every split, limits to the octet, and nothing but ProtocolError."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import SupportsIndex

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policyd.answer import DUNNO, Answer, make_answer
from policyd.errors import ProtocolError
from policyd.request import Attributes
from policyd.wire import (
    MAX_ATTRIBUTES,
    MAX_LINE,
    MAX_REQUEST,
    RequestParser,
    encode,
    kept_attributes,
    parse_attributes,
)

#: Every attribute that Postfix up to 3.12 sends (SMTPD_POLICY_README), in its order, with values of our own.
SAMPLE = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "protocol_name": "ESMTP",
    "helo_name": "laptop.example.org",
    "queue_id": "4fXk2q1Zz9zJrQ",
    "sender": "prvs=1234abcd=alice@example.org",
    "recipient": "bob@example.net",
    "recipient_count": "0",
    "client_address": "2001:db8::25",
    "client_name": "laptop.example.org",
    "reverse_client_name": "laptop.example.org",
    "instance": "1c2f.69245f01.4b2d1.0",
    "sasl_method": "plain",
    "sasl_username": "alice",
    "sasl_sender": "",
    "size": "12345",
    "ccert_subject": "alice+40example.org",
    "ccert_issuer": "Example+20CA",
    "ccert_fingerprint": "C2:9D:F4:87:71:73:73:D9:18:E7:C2:F3:C1:DA:6E:04",
    "encryption_protocol": "TLSv1.3",
    "encryption_cipher": "TLS_AES_256_GCM_SHA384",
    "encryption_keysize": "256",
    "etrn_domain": "",
    "stress": "",
    "ccert_pubkey_fingerprint": "68:B3:29:DA:98:93:E3:40:99:C7:D8:AD:5C:B9:C9:40",
    "client_port": "51234",
    "policy_context": "submission",
    "server_address": "2001:db8::1",
    "server_port": "587",
    "compatibility_level": "3.6",
    "mail_version": "3.12.0",
    "tls_sni": "mail.example.org",
}
FIRST = "request=smtpd_access_policy\n"


def message(attributes: dict[str, str]) -> bytes:
    return "".join(f"{name}={value}\n" for name, value in attributes.items()).encode() + b"\n"


def parse(pieces: list[bytes]) -> tuple[list[dict[str, str]], str | None]:
    """All requests in ``pieces``, asked for after each; and the error that ended it."""
    parser, requests = RequestParser(parse_attributes), []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (request := parser.next_request()) is not None:
                requests.append(request)
    except ProtocolError as error:
        return requests, str(error)
    return requests, None


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(edges)]


def in_every_way(data: bytes) -> tuple[list[dict[str, str]], str | None]:
    """The outcome of ``data`` whole; one octet at a time and in pieces it is the same."""
    whole = parse([data])
    assert parse([data[at : at + 1] for at in range(len(data))]) == whole
    assert parse([data[at : at + 7] for at in range(0, len(data), 7)]) == whole
    return whole


# --- what is a request --------------------------------------------------------------------------------------------


def test_every_attribute_up_to_postfix_3_12() -> None:
    """Postfix's request, each attribute with its value, whole and in pieces."""
    assert in_every_way(message(SAMPLE)) == ([SAMPLE], None)


def test_requests_glued_together_come_out_in_order() -> None:
    """Pipelined input, and a next request that has only begun, change nothing of the first."""
    other = {**SAMPLE, "recipient": "carol@example.net"}
    data = message(SAMPLE) + message(other)
    assert in_every_way(data) == ([SAMPLE, other], None)
    for cut in range(len(message(other))):
        requests, error = parse([data[: len(data) - cut]])
        assert error is None
        assert requests == ([SAMPLE, other] if cut == 0 else [SAMPLE])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "=",
        "a=b=c",
        "prvs=0=x@example.org",
        " padded ",
        "tab\there",
        "quote\"s'",
        "100%n{ref}",
        "a\rb",
        "\r",
    ],
)
def test_values_are_taken_as_they_are(value: str) -> None:
    """Split at the first "=" only; blanks, quotes, percent signs and CR are values like any other."""
    attributes = {"request": "smtpd_access_policy", "sender": value}
    assert in_every_way(message(attributes)) == ([attributes], None)


def test_order_is_free_and_unknown_attributes_are_kept() -> None:
    """``request`` may come last; an attribute of a later Postfix does no harm."""
    attributes = {"x_new": "1", "sender": "a@b", "request": "smtpd_access_policy"}
    assert in_every_way(message(attributes)) == ([attributes], None)


def test_of_duplicates_the_first_counts() -> None:
    """Also for ``request`` itself."""
    data = (FIRST + "sender=first\nsender=second\nrequest=other\nsender=\n\n").encode()
    assert in_every_way(data) == ([{"request": "smtpd_access_policy", "sender": "first"}], None)
    assert in_every_way(("request=other\n" + FIRST + "\n").encode())[1] == "no request=smtpd_access_policy"


def test_utf8_is_put_together_wherever_it_was_cut() -> None:
    """Characters of two, three and four octets, cut at each octet."""
    attributes = {"request": "smtpd_access_policy", "sender": "jos\u00e9@\u4f8b.\U0001d538"}
    data = message(attributes)
    for cut in range(len(data)):
        assert parse([data[:cut], data[cut:]]) == ([attributes], None)


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"\xff", "\\xff"),
        (b"jos\xe9@example.org", "jos\\xe9@example.org"),
        (b"\xe4\xbe", "\\xe4\\xbe"),
        (b"\xc0\xaf", "\\xc0\\xaf"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        (b"ok \xc3\xa9 \x80", "ok \u00e9 \\x80"),
    ],
)
def test_what_is_no_utf8_stands_escaped(octets: bytes, text: str) -> None:
    """Cut off, overlong, surrogates and Latin-1: the value can be stored and printed, its neighbours are untouched."""
    data = FIRST.encode() + b"sender=" + octets + b"\nrecipient=bob@example.net\n\n"
    requests, error = in_every_way(data)
    assert error is None
    assert requests == [{"request": "smtpd_access_policy", "sender": text, "recipient": "bob@example.net"}]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\n", "empty request"),
        (b"\n\n", "empty request"),
        (b"\nrequest=smtpd_access_policy\n\n", "empty request"),
        (b"\0\n\n", "NUL"),
        (b"request=smtpd_access_policy\nsender=a\0b\n\n", "NUL"),
        (b"request=smtpd_access_policy\nse\0nder=a\n\n", "NUL"),
        (b"request=smtpd_access_policy\nsender\n\n", "without '='"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\n\n", "without '='"),
        (b"request=smtpd_access_policy\n=value\n\n", "without a name"),
        (b"request=smtpd_access_policy\n=\n\n", "without a name"),
        (b"sender=alice@example.org\n\n", "no request="),
        (b"request=\n\n", "no request="),
        (b"request=junk_policy\n\n", "no request="),
        (b"request=smtpd_access_policy\r\n\n", "no request="),
        (b"Request=smtpd_access_policy\n\n", "no request="),
    ],
)
def test_what_breaks_the_grammar_is_a_protocol_error(data: bytes, why: str) -> None:
    """Requests before it are delivered first; after it nothing is."""
    before = message(SAMPLE)
    requests, error = in_every_way(before + data + before)
    assert requests == [SAMPLE]
    assert error is not None
    assert why in error


def test_a_request_with_cr_lf_ends_never_and_runs_into_the_limit() -> None:
    """The empty line is two LF; a peer that ends lines with CR LF sends no request at all."""
    requests, error = parse([b"request=smtpd_access_policy\r\n\r\n" * 10_000])
    assert requests == []
    assert error is not None


# --- limits, to the octet -----------------------------------------------------------------------------------------


def test_a_line_may_have_max_line_octets_and_no_more() -> None:
    """The LF is not counted; a line that is too long is noticed before it ends."""
    longest = "sender=" + "a" * (MAX_LINE - len("sender="))
    requests, error = in_every_way((FIRST + longest + "\n\n").encode())
    assert error is None
    assert len(requests[0]["sender"]) == MAX_LINE - len("sender=")
    assert in_every_way((FIRST + longest + "a\n\n").encode()) == (
        [],
        f"a line of more than {MAX_LINE} octets",
    )
    assert parse([(FIRST + longest).encode()]) == ([], None)
    assert parse([(FIRST + longest + "a").encode()])[1] == f"a line of more than {MAX_LINE} octets"


def of_length(length: int) -> bytes:
    """A request of exactly ``length`` octets before its empty line."""
    text = FIRST + "".join(f"x{number}={'v' * 4_000}\n" for number in range((length - 40) // 4_100))
    text += "last="
    return (text + "v" * (length - len(text)) + "\n\n").encode()


@pytest.mark.parametrize("size", [MAX_REQUEST - 1, MAX_REQUEST])
def test_a_request_may_have_max_request_octets(size: int) -> None:
    """However it is cut: also when its last LF comes alone."""
    data = of_length(size)
    assert len(data) == size + 2
    requests, error = in_every_way(data + message(SAMPLE))
    assert error is None
    assert requests[1:] == [SAMPLE]


def test_a_request_of_one_octet_more_is_refused() -> None:
    """Whole, in pieces, and before it is complete."""
    data = of_length(MAX_REQUEST + 1)
    refused = ([], f"a request of more than {MAX_REQUEST} octets")
    assert in_every_way(data) == refused
    # The octet that is one too many could still have been the last line's LF.
    assert parse([data[:-2]]) == ([], None)
    assert parse([data[:-1]]) == refused


def test_a_request_may_have_max_attributes_and_no_more() -> None:
    """Duplicates count: they are work too."""
    most = FIRST + "x=1\n" * (MAX_ATTRIBUTES - 1)
    assert in_every_way((most + "\n").encode()) == ([{"request": "smtpd_access_policy", "x": "1"}], None)
    refused = ([], f"more than {MAX_ATTRIBUTES} attributes")
    assert in_every_way((most + "x=1\n\n").encode()) == refused


def test_ten_thousand_attributes_are_refused() -> None:
    """With names and values so short that no other limit helps, and with longer ones."""
    short = (FIRST + "x=\n" * 10_000 + "\n").encode()
    assert parse([short]) == ([], f"more than {MAX_ATTRIBUTES} attributes")
    longer = (FIRST + "".join(f"attribute{n}=value\n" for n in range(10_000)) + "\n").encode()
    assert parse([longer]) == ([], f"a request of more than {MAX_REQUEST} octets")


def test_octets_without_end_are_refused_at_the_limit() -> None:
    """No LF at all: refused after MAX_LINE octets, and not kept beyond."""
    parser = RequestParser(parse_attributes)
    for _ in range(MAX_LINE):
        parser.feed(b"x")
        assert parser.next_request() is None
    assert parser.pending == MAX_LINE
    parser.feed(b"x")
    with pytest.raises(ProtocolError, match="a line of more"):
        parser.next_request()


def test_pending_tells_what_waits() -> None:
    """The server gives half a request its own deadline: it must see whether one has begun."""
    parser = RequestParser(parse_attributes)
    assert parser.pending == 0
    assert parser.next_request() is None
    parser.feed(message(SAMPLE) + b"req")
    assert parser.pending == len(message(SAMPLE)) + 3
    assert parser.next_request() == SAMPLE
    assert parser.pending == 3
    assert parser.next_request() is None


class CountingBuffer(bytearray):
    """Counts the octets that searches may look at."""

    looked = 0

    def find(  # type: ignore[override]
        self, sub: bytes, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /
    ) -> int:
        found = super().find(sub, start, end)
        self.looked += (len(self) if found == -1 else found + len(sub)) - int(start or 0)
        return found

    def rfind(  # type: ignore[override]
        self, sub: bytes, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /
    ) -> int:
        found = super().rfind(sub, start, end)
        self.looked += len(self) - max(found, int(start or 0))
        return found


@pytest.mark.parametrize("piece", [1, 2, 100, 10_000])
@pytest.mark.parametrize(
    "data", [of_length(MAX_REQUEST), (FIRST + "a=" + "b" * (MAX_LINE - 2) + "\n\n").encode()]
)
def test_an_octet_is_looked_at_a_bounded_number_of_times(data: bytes, piece: int) -> None:
    """A peer that sends one octet at a time must not make the parser read its whole buffer again each time."""
    parser = RequestParser(parse_attributes)
    buffer = parser._buffer = CountingBuffer()
    requests = 0
    for at in range(0, len(data), piece):
        parser.feed(data[at : at + piece])
        requests += parser.next_request() is not None
    assert parser._buffer is buffer
    assert requests == 1
    pieces = len(data) // piece + 1
    assert buffer.looked <= 2 * len(data) + 6 * pieces


# --- anything at all ----------------------------------------------------------------------------------------------

names = st.text(
    st.characters(blacklist_characters="=\0\n", blacklist_categories=("Cs",)), min_size=1, max_size=12
)
values = st.text(st.characters(blacklist_characters="\0\n", blacklist_categories=("Cs",)), max_size=40)
requests_of = st.dictionaries(names, values, max_size=8).map(
    lambda others: {**others, "request": "smtpd_access_policy"}
)
cuts = st.lists(st.integers(0, 10**6), max_size=30)


@settings(max_examples=200)
@given(st.lists(requests_of, max_size=5), cuts)
def test_n_requests_in_any_split_are_n_dicts_in_order(sent: list[dict[str, str]], at: list[int]) -> None:
    """The promise of the parser."""
    assert parse(split(b"".join(map(message, sent)), at)) == (sent, None)


@settings(max_examples=300)
@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                b"request=smtpd_access_policy\n",
                b"sender=",
                b"a@b",
                b"\n",
                b"\n\n",
                b"=",
                b"\0",
                b"\r",
                b"\xff",
                b"x=1\n",
            ]
        ),
        max_size=30,
    ).map(b"".join),
    cuts,
)
@example(b"request=smtpd_access_policy\n\n\n", [29])
def test_any_octets_in_any_split_have_one_outcome(data: bytes, at: list[int]) -> None:
    """Nothing but ProtocolError is raised, and how the octets were cut decides nothing."""
    requests, error = parse([data])
    again, again_error = parse(split(data, at))
    assert again == requests
    # Which of two defects is named may depend on which was seen first; that there is one does not.
    assert (error is None) == (again_error is None)
    assert all(
        isinstance(key, str) and key and value.encode() is not None
        for r in requests
        for key, value in r.items()
    )


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_request_harms_none_before_it(data: st.DataObject) -> None:
    """Octets of a real request changed, removed, doubled: the requests before come out, then one error or dicts."""
    damaged = bytearray(message(SAMPLE))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["change", "remove", "double"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "remove":
                del damaged[at : at + data.draw(st.integers(1, 40))]
            case _:
                damaged[at:at] = damaged[at : at + data.draw(st.integers(1, 40))]
        if not damaged:
            break
    stream = message(SAMPLE) + bytes(damaged)
    requests, error = parse(split(stream, data.draw(cuts)))
    assert requests[0] == SAMPLE
    assert parse([stream]) == (requests, error)


@given(st.binary(max_size=200))
def test_parse_attributes_raises_nothing_else(block: bytes) -> None:
    """Also without the stream around it, as `policyctl ask FILE` uses it."""
    try:
        attributes = parse_attributes(block)
    except ProtocolError:
        return
    assert attributes["request"] == "smtpd_access_policy"


#: What Postfix 3.7 sends, in its order, and what a later one adds.
AS_POSTFIX = [
    *[
        "request",
        "protocol_state",
        "protocol_name",
        "client_address",
        "client_name",
        "client_port",
        "reverse_client_name",
    ],
    *[
        "server_address",
        "server_port",
        "helo_name",
        "sender",
        "recipient",
        "recipient_count",
        "queue_id",
        "instance",
        "size",
    ],
    *[
        "etrn_domain",
        "stress",
        "sasl_method",
        "sasl_username",
        "sasl_sender",
        "ccert_subject",
        "ccert_issuer",
    ],
    *["ccert_fingerprint", "ccert_pubkey_fingerprint", "encryption_protocol", "encryption_cipher"],
    *["encryption_keysize", "policy_context", "compatibility_level", "mail_version", "tls_sni"],
]


@pytest.mark.parametrize("count", [29, 31, 32])
def test_a_request_as_postfix_sends_it_takes_the_short_way(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look along it finds what is kept; nothing of it is looked at twice."""
    sent = {name: SAMPLE[name] for name in AS_POSTFIX[:count]}
    monkeypatch.setattr("policyd.wire.parse_attributes", None)
    assert kept_attributes(message(sent)[:-2]) == Attributes.of(sent)


@given(st.data())
def test_the_short_way_finds_what_the_long_way_finds(data: st.DataObject) -> None:
    """However the lines of a request are changed, doubled, removed, moved: the same attributes, or the same error."""
    lines = [f"{name}={SAMPLE[name]}" for name in AS_POSTFIX]
    for _ in range(data.draw(st.integers(0, 4))):
        at, to = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["value", "line", "remove", "double", "move"])):
            case "value":
                value = data.draw(st.text(max_size=600)).replace("\n", " ")
                lines[at] = lines[at].partition("=")[0] + "=" + value
            case "line":
                lines.insert(to, data.draw(st.text(st.sampled_from("a=\0 \u00e9"), max_size=3)))
            case "remove":
                del lines[at]
            case "double":
                lines.insert(to, lines[at].partition("=")[0] + "=other")
            case _:
                lines.insert(to, lines.pop(at))
    block = "\n".join(lines).encode()
    try:
        expected = Attributes.of(parse_attributes(block))
    except ProtocolError as error:
        with pytest.raises(ProtocolError, match=re.escape(str(error))):
            kept_attributes(block)
    else:
        assert kept_attributes(block) == expected


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "octets"),
    [
        (DUNNO, b"action=DUNNO\n\n"),
        (Answer("REJECT"), b"action=REJECT\n\n"),
        (make_answer("450", "4.7.1 Later; ref 7F3K2"), b"action=450 4.7.1 Later; ref 7F3K2\n\n"),
        (make_answer("PREPEND", "X-Policy: caf\u00e9"), b"action=PREPEND X-Policy: caf\xc3\xa9\n\n"),
    ],
)
def test_an_answer_is_one_line_and_an_empty_one(answer: Answer, octets: bytes) -> None:
    """Exactly what Postfix reads: nothing before, nothing after."""
    assert encode(answer) == octets
