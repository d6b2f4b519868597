"""The dnsbl check: scores as postscreen adds them up, what is asked and what is not, and what is remembered."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from policyd.answer import DUNNO
from policyd.blocklists import Blocklist, Listing
from policyd.checks import Context, dnsbl
from policyd.dnsbl_sites import sites
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.steering import CheckMode, Steering
from tests.fakes import NOW, SITE, ask, finish, rcpt

CLEAN = Listing((), True, "", 300)
SIX = [f"l{number}.example" for number in range(6)]


class Lists:
    """Blocklists that say what the test wants, and note what they are asked."""

    def __init__(self, **said: Listing) -> None:
        self.epoch = 0
        self.said = {zone.replace("_", "."): listing for zone, listing in said.items()}
        self.asked: list[tuple[list[str], str, float]] = []
        self.texts: dict[str, str] = {}
        self.told: list[tuple[list[str], str]] = []

    def put(self, zone: str, *codes: str, ttl: float = 300, known: bool = True) -> None:
        self.said[zone] = Listing(codes, known, "" if known else "timeout", ttl)

    async def look_up(self, lists: Sequence[Blocklist], name: str, due: float) -> Sequence[Listing]:
        self.asked.append(([each.zone for each in lists], name, due))
        return [self.said.get(each.zone, CLEAN) for each in lists]

    async def text(self, blocklist: Blocklist, name: str, due: float) -> str:
        self.asked.append(([blocklist.zone], name + " TXT", due))
        return self.texts.get(blocklist.zone, "")

    def tally(self, lists: Sequence[Blocklist], name: str, listings: Sequence[Listing]) -> None:
        self.told.append(
            ([each.zone for each, said in zip(lists, listings, strict=True) if said.codes], name)
        )


def made(lists: Lists, *texts: str, direction: str = "mx", **options: Any) -> dnsbl.Check:
    given = dnsbl.Options(sites(list(texts)), **options)
    return dnsbl.Check(given, Context("dnsbl", direction, SITE, blocklists=lists))


def stranger(**attributes: str) -> Any:
    given = {
        "sender": "bob@example.net",
        "recipient": "alice@example.org",
        "sasl_method": "",
        "sasl_username": "",
    }
    return rcpt("1a.2b.0", **(given | attributes))


def opinion(
    check: dnsbl.Check, request: Any = None, now: int = NOW, steering: Steering | None = None
) -> Opinion | None:
    coroutine: Coroutine[Any, Any, Opinion | None] = check.check(
        request or stranger(), now, steering or Steering(), Inquiry(12.5)
    )
    return finish(coroutine)


def score(check: dnsbl.Check, request: Any = None, now: int = NOW) -> Any:
    found = opinion(check, request, now)
    return None if found is None else found.finding


# --- the score -----------------------------------------------------------------------------------------------------------


def test_a_listed_client_is_refused_with_the_lists_name() -> None:
    """The text names the list, so that an innocent one knows where to go; the log has every reply that counted."""
    lists = Lists()
    lists.put("zen.example", "127.0.0.2", "127.0.0.4")
    lists.put("b.example", "127.0.0.3")
    found = opinion(made(lists, "zen.example=127.0.0.[2..11]*3", "b.example*2", "c.example", threshold=3))
    assert found is not None
    assert (
        str(found.answer)
        == "550 5.7.1 Service unavailable; client [192.0.2.7] blocked using zen.example. ref {ref}"
    )
    assert found.finding == 5
    assert found.reason == "score 5: zen.example 127.0.0.2/127.0.0.4 +3, b.example 127.0.0.3 +2"
    assert not found.final
    assert lists.asked == [(["zen.example", "b.example", "c.example"], "7.2.0.192", 12.5)]


def test_it_can_defer_instead() -> None:
    """on_listed = "defer", with a text of the admin's own."""
    lists = Lists(b_example=Listing(("127.0.0.2",), True, "", 300))
    found = opinion(
        made(lists, "b.example*2", on_listed="defer", text="{kind} {address} {zone} {score} {reason} {ref}")
    )
    assert found is not None
    assert str(found.answer) == "450 4.7.1 client 192.0.2.7 b.example 2  {ref}"


def test_a_name_blown_up_by_what_does_not_count_is_not_kept() -> None:
    """Characters that a name loses on its way to A-labels (RFC 5891 5.2) make it as long as its sender likes."""
    lists = Lists(b_example=Listing(("127.0.0.2",), True, "", 300))
    check = made(lists, "b.example", lookup="helo")
    assert score(check, stranger(helo_name="bad.example")) == 1
    assert score(check, stranger(helo_name="\u00ad" * 300 + "bad.example")) == 1
    assert score(check, stranger(helo_name="\u00ad" * 300 + "bad.example")) == 1
    assert score(check, stranger(helo_name="bad.example")) == 1
    assert [name for _, name, _ in lists.asked] == ["bad.example"] * 3


def test_each_entry_counts_once_and_a_zone_is_asked_once() -> None:
    """postconf(5): several replies of one entry apply its weight at most once; the same zone with other filters adds up."""
    lists = Lists()
    lists.put("z.example", "127.0.0.2", "127.0.0.3", "127.0.0.10")
    check = made(
        lists,
        "z.example=127.0.0.[2..3]*3",
        "z.example=127.0.0.[10;11]*4",
        "z.example=127.0.0.9*50",
        threshold=9,
    )
    assert score(check) == 7
    assert [zones for zones, _, _ in lists.asked] == [["z.example"]]


def test_an_allow_list_outweighs() -> None:
    """Negative weights, as for list.dnswl.org."""
    lists = Lists()
    lists.put("b.example", "127.0.0.2")
    lists.put("w.example", "127.0.9.2")
    found = opinion(made(lists, "b.example*3", "w.example=127.0.[0..255].[1..3]*-4", threshold=3))
    assert found is not None
    assert (str(found.answer), found.finding, found.final) == ("DUNNO", -1, False)


@pytest.mark.parametrize(("allow_threshold", "final"), [(0, False), (-4, True), (-3, True), (-5, False)])
def test_a_score_that_is_low_enough_ends_the_chain(allow_threshold: int, final: bool) -> None:
    """As postscreen_dnsbl_allowlist_threshold: the score itself suffices; Postfix's own restrictions still decide."""
    lists = Lists(w_example=Listing(("127.0.0.3",), True, "", 300))
    check = made(lists, "w.example*-4", "v.example*-1", "b.example", allow_threshold=allow_threshold)
    found = opinion(check)
    assert found is not None
    assert (found.finding, str(found.answer), found.final) == (-4, "DUNNO", final)


def test_the_list_of_the_largest_weight_is_named() -> None:
    """As postscreen does, wherever it stands in the file."""
    lists = Lists()
    for zone in ("a.example", "b.example", "c.example"):
        lists.put(zone, "127.0.0.2")
    found = opinion(made(lists, "a.example*1", "b.example*5", "c.example*2"))
    assert found is not None
    assert "using b.example." in str(found.answer)


def test_a_key_in_a_zone_is_never_shown() -> None:
    """Neither in the answer, nor in the reason for the log, nor by the list's own text; the zone asked has it."""
    lists = Lists()
    zone = "abcdef.zen.dq.spamhaus.net"
    lists.put(zone, "127.0.0.2")
    for names in ((), ((zone, "zen.spamhaus.org"),)):
        check = made(lists, zone, public_names=names)
        found = opinion(check)
        assert found is not None
        assert "abcdef" not in f"{found}"
        assert check.blocklists[0].zone == zone
        assert check.blocklists[0].public == (names[0][1] if names else "zen.dq.spamhaus.net")
    assert "using zen.spamhaus.org." in str(found.answer if found else "")


# --- what nobody could say -----------------------------------------------------------------------------------------------


def test_what_is_not_known_counts_nothing() -> None:
    """A silent list neither lists nor clears: the others decide."""
    lists = Lists()
    lists.put("b.example", known=False)
    lists.put("c.example", "127.0.0.2")
    check = made(lists, "b.example*3", "c.example*2", threshold=3)
    assert score(check) == 2


def test_when_no_list_answers_there_is_no_finding() -> None:
    """A `when` further down must not take silence for a clean client."""
    lists = Lists()
    lists.put("b.example", known=False)
    found = opinion(made(lists, "b.example"))
    assert found is not None
    assert found.finding is None
    assert found.answer is DUNNO
    assert found.reason == "no list answers; not counted: b.example (timeout)"


def test_the_reason_tells_what_each_list_said_and_which_said_nothing() -> None:
    """`policyctl explain` of a mail that passed: clean, listed beyond the filter, or simply not asked."""
    lists = Lists(b_example=Listing(("127.0.0.11",), True, "", 300))
    lists.put("silent.example", known=False)
    check = made(lists, "b.example=127.0.0.[2..9]", "clean.example", "silent.example", "off.example")
    off = Steering()
    off.put("check_mode", CheckMode("dnsbl/off.example", "off", "", "root", NOW, 0))
    found = opinion(check, steering=off)
    assert found is not None
    assert (
        found.reason
        == "score 0: b.example 127.0.0.11 +0; not counted: silent.example (timeout); off: off.example"
    )
    clean = opinion(made(Lists(), "x.example", "y.example"))
    assert clean is not None
    assert clean.reason == "score 0: on none of 2"


def test_a_reply_beyond_the_filter_counts_nothing() -> None:
    """The filter is the admin's: other replies of that zone are none of this entry's business."""
    lists = Lists(b_example=Listing(("127.0.0.11",), True, "", 300))
    assert score(made(lists, "b.example=127.0.0.[2..9]")) == 0


# --- the reason in TXT ---------------------------------------------------------------------------------------------------


def test_the_lists_own_text_is_told_if_wanted() -> None:
    """With txt = true only, of the list that is named, and only when mail is refused."""
    lists = Lists(b_example=Listing(("127.0.0.2",), True, "", 300))
    lists.texts["b.example"] = "see https://b.example/?ip=192.0.2.7."
    found = opinion(made(lists, "b.example", txt=True))
    assert found is not None
    assert "blocked using b.example; see https://b.example/?ip=192.0.2.7. ref {ref}" in str(found.answer)
    assert [name for _, name, _ in lists.asked] == ["7.2.0.192", "7.2.0.192 TXT"]
    assert score(made(lists, "b.example", "c.example", threshold=2, txt=True)) == 1
    assert [name for _, name, _ in lists.asked][2:] == ["7.2.0.192"]


@pytest.mark.parametrize(
    "text", ["a\r\n250 2.0.0 Ok", "\x1b[2J", "\u202eabc", "x" * 5000, " \n ", "{ref} {zone}", "\udcff"]
)
def test_a_hostile_text_breaks_no_answer(text: str) -> None:
    """What the keeper of a list writes is text of a stranger."""
    lists = Lists(b_example=Listing(("127.0.0.2",), True, "", 300))
    lists.texts["b.example"] = text
    found = opinion(made(lists, "b.example", txt=True))
    assert found is not None
    answer = str(found.answer)
    assert answer.isascii()
    assert answer.isprintable()
    assert len(answer) <= 400
    assert answer.endswith("ref {ref}")
    assert answer.count("{") == 1


# --- what is looked up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lookup", "attributes", "name", "kind"),
    [
        (
            "client",
            {"client_address": "2001:db8::1"},
            "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2",
            "client [2001:db8::1]",
        ),
        ("client", {"client_address": "::ffff:192.0.2.7"}, "7.2.0.192", "client [::ffff:192.0.2.7]"),
        ("sender", {"sender": "bob@Example.NET."}, "example.net", "sender domain [example.net]"),
        ("sender", {"sender": "bob@b\u00fccher.example"}, "xn--bcher-kva.example", "sender domain ["),
        ("helo", {"helo_name": "Mail.Example.net"}, "mail.example.net", "HELO name [Mail.Example.net]"),
        ("client-name", {"client_name": "mx.example.net"}, "mx.example.net", "client name [mx.example.net]"),
        ("reverse-client-name", {"reverse_client_name": "r.example.net"}, "r.example.net", "client name ["),
    ],
)
def test_what_is_looked_up(lookup: str, attributes: dict[str, str], name: str, kind: str) -> None:
    """As Postfix's reject_rbl_client and reject_rhsbl_*: addresses reversed, domains as A-labels."""
    lists = Lists(b_example=Listing(("127.0.0.2",), True, "", 300))
    check = made(lists, "b.example", lookup=lookup)
    found = opinion(check, stranger(**attributes))
    assert lists.asked[0][1] == name
    assert found is not None
    assert kind in str(found.answer)
    assert check.blocklists == (Blocklist("b.example", "b.example", lookup != "client"),)


@pytest.mark.parametrize(
    ("lookup", "attributes"),
    [
        ("client", {"client_address": "unknown"}),
        ("client", {"client_address": ""}),
        ("sender", {"sender": ""}),
        ("sender", {"sender": "bob"}),
        ("sender", {"sender": "bob@[192.0.2.7]"}),
        ("sender", {"sender": "bob@localhost"}),
        ("sender", {"sender": "bob@a..example"}),
        ("sender", {"sender": "bob@" + "a." * 150 + "example"}),
        ("sender", {"sender": "bob@ex ample.net"}),
        ("helo", {"helo_name": "[192.0.2.7]"}),
        ("helo", {"helo_name": "192.0.2.7"}),
        ("helo", {"helo_name": "laptop"}),
        ("helo", {"helo_name": ""}),
        ("helo", {"helo_name": "x\udcff.example"}),
        ("client-name", {"client_name": "unknown"}),
        ("reverse-client-name", {"reverse_client_name": "unknown"}),
    ],
)
def test_what_no_list_can_list_is_not_asked(lookup: str, attributes: dict[str, str]) -> None:
    """Address literals, single labels, "unknown", the null sender: no opinion, and no question."""
    lists = Lists()
    assert opinion(made(lists, "b.example", lookup=lookup), stranger(**attributes)) is None
    assert lists.asked == []


def test_our_own_users_and_stress_ask_nobody() -> None:
    """Look-ups cost time, and nobody's own users sit at clean addresses; the admin may want them nevertheless."""
    lists = Lists(b_example=Listing(("127.0.0.2",), True, "", 300))
    alice = rcpt("1.2.3", "bob@example.net")
    inside = stranger(client_address="127.0.0.1")
    assert alice.is_submission
    assert inside.is_submission
    check = made(lists, "b.example", direction="any")
    assert [opinion(check, each) for each in (alice, inside, stranger(stress="yes"))] == [None, None, None]
    assert lists.asked == []
    assert check.needs == {"mx": {"RCPT"}}
    check = made(lists, "b.example", direction="any", even_authenticated=True, even_under_stress=True)
    assert [score(check, each) for each in (alice, inside, stranger(stress="yes"))] == [1, 1, 1]
    assert set(check.needs) == {"mx", "submission"}
    assert check.stages == {"RCPT"}
    assert opinion(check, ask(sasl_method="", client_address="192.0.2.8")) is not None


# --- what is remembered --------------------------------------------------------------------------------------------------


def test_the_score_of_a_clean_client_is_remembered_for_its_ttl() -> None:
    """Not only the answers: a warm request costs one look into a dictionary, and gets the very same opinion."""
    lists = Lists()
    check = made(lists, *SIX)
    first = opinion(check)
    assert opinion(check, stranger(recipient="carol@example.org"), NOW + 299_999) is first
    assert len(lists.asked) == 1
    assert opinion(check, now=NOW + 300_000) is not first
    assert len(lists.asked) == 2


def test_the_smallest_ttl_holds_but_a_minute_at_least() -> None:
    """TTL 0 of one list must not make every request ask again."""
    lists = Lists()
    lists.put("l3.example", ttl=1)
    check = made(lists, *SIX)
    opinion(check)
    opinion(check, now=NOW + 59_999)
    assert len(lists.asked) == 1
    opinion(check, now=NOW + 60_000)
    assert len(lists.asked) == 2


def test_a_listing_counts_only_as_long_as_it_is_vouched_for() -> None:
    """The lists say for how long (at most ten seconds after a random name was not listed): then they are asked again."""
    lists = Lists()
    lists.put("l0.example", "127.0.0.2", ttl=4.0)
    check = made(lists, *SIX)
    assert [score(check, now=NOW + after) for after in (0, 3_999, 4_000)] == [1, 1, 1]
    assert len(lists.asked) == 2
    lists.put("l0.example", known=False)
    assert score(check, now=NOW + 8_000) == 0


def test_a_change_of_any_lists_health_ends_what_is_remembered() -> None:
    """A list that fell sick must not go on refusing from memory, nor one that is well again be left out."""
    lists = Lists()
    lists.put("l0.example", "127.0.0.2", ttl=3600)
    check = made(lists, *SIX)
    assert score(check) == 1
    lists.put("l0.example", known=False, ttl=3600)
    lists.epoch += 1
    assert score(check) == 0
    lists.put("l0.example", "127.0.0.2", ttl=3600)
    assert score(check) == 0
    lists.epoch += 1
    assert score(check) == 1


def test_a_list_that_is_off_counts_nothing_from_the_next_request_on() -> None:
    """`policyctl dnsbl off ZONE --for 24h` and its end, with the score still remembered; the zone's key need not be known."""
    lists = Lists()
    lists.put("abcdef.zen.dq.spamhaus.net", "127.0.0.2")
    check = made(lists, "abcdef.zen.dq.spamhaus.net*3", "l1.example")
    steering = Steering()

    def now_scored(now: int = NOW) -> Any:
        found = opinion(check, now=now, steering=steering)
        return None if found is None else found.finding

    assert now_scored() == 3
    steering.put("check_mode", CheckMode("dnsbl/zen.dq.spamhaus.net", "off", "", "root", NOW, NOW + 50_000))
    assert now_scored() == 0
    assert lists.asked[-1][0] == ["l1.example"]
    assert now_scored(NOW + 50_000) == 3
    steering.put("check_mode", CheckMode("dnsbl/zen.dq.spamhaus.net", "off", "", "root", NOW, 0))
    steering.put("check_mode", CheckMode("dnsbl/l1.example", "off", "", "root", NOW, 0))
    asked = len(lists.asked)
    assert opinion(check, steering=steering) is None
    assert len(lists.asked) == asked
    steering.drop("check_mode", ("dnsbl/zen.dq.spamhaus.net",))
    assert now_scored() == 3


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of clients takes no more room than so many scores; what is oldest goes first."""
    monkeypatch.setattr(dnsbl, "MOST_SCORES", 100)
    lists = Lists()
    check = made(lists, "b.example")
    for number in range(1000):
        opinion(check, stranger(client_address=f"198.51.{number >> 8}.{number & 255}"))
    assert len(check._known) == 100
    opinion(check, stranger(client_address="198.51.3.231"))
    assert len(lists.asked) == 1000
    check = made(lists, "b.example", lookup="helo")
    opinion(check, stranger(helo_name="x" * 60 + ".example" * 30))
    assert check._known == {}


def test_a_client_is_counted_once_for_all_its_recipients() -> None:
    """The figures of a list are about clients; a listing is asked anew every ten seconds, and is the same client's."""
    lists = Lists()
    lists.put("l0.example", "127.0.0.2", ttl=5)
    check = made(lists, *SIX)
    for after in (0, 6_000, 12_000, 59_000):
        opinion(check, now=NOW + after)
    assert len(lists.asked) == 4
    assert lists.told == [(["l0.example"], "7.2.0.192")]
    opinion(check, now=NOW + 65_000)
    assert len(lists.told) == 2


# --- the options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        (
            ["b.example*2", "w.example*-3"],
            {"threshold": 3},
            "no sum of weights reaches threshold = 3: together they are 2",
        ),
        (["w.example*-3"], {}, "no sum of weights reaches threshold = 1"),
        (["b.example"], {"threshold": 0}, "would refuse everybody"),
        (["b.example"], {"threshold": -1}, "would refuse everybody"),
        (["b.example"], {"allow_threshold": 2}, "must be below 0"),
        (
            ["b.example", "w.example*-3"],
            {"allow_threshold": -4},
            "no sum of weights reaches allow_threshold = -4",
        ),
        (
            ["b.example"],
            {"untested": ("c.example",)},
            "untested names c.example, which no site asks; the zones are b.example",
        ),
        (["b.example"], {"public_names": (("c.example", "d.example"),)}, "public_names names c.example"),
        (["b.example=127.255.255.254"], {}, "is a refusal to answer"),
        (["b.example=127.0.0.1"], {}, "is a refusal to answer"),
        (["b.example=10.0.0.[1..9]"], {}, "outside of 127.0.0.0/8"),
        (["b.example=127.255.255.[0..255]"], {}, "is a refusal to answer"),
    ],
)
def test_what_can_never_work_is_an_error_of_the_configuration(
    texts: list[str], options: dict[str, Any], says: str
) -> None:
    """A door that cannot close must not look as if it could."""
    with pytest.raises(ValueError, match=re.escape(says)):
        made(Lists(), *texts, **options)


def test_for_submission_alone_it_would_do_nothing() -> None:
    """Unless it is told to ask about one's own users, too."""
    with pytest.raises(ValueError, match="for = 'submission'"):
        made(Lists(), "b.example", direction="submission")
    assert made(Lists(), "b.example", direction="submission", even_authenticated=True).needs == {
        "submission": {"RCPT"}
    }


def test_lists_without_test_entries_are_named() -> None:
    """What the watch over the lists needs to know stands with them."""
    check = made(Lists(), "b.example", "w.example*-2", untested=("w.example",))
    assert [(each.zone, each.tested) for each in check.blocklists] == [
        ("b.example", True),
        ("w.example", False),
    ]
