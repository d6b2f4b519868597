"""Answers obey the grammar that Postfix reads, whatever text they are made from."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policyd.answer import (
    DUNNO,
    HEADER,
    HOLD,
    MAX_TEXT_BYTES,
    PASS,
    REFUSE,
    Answer,
    clip,
    escape,
    make_answer,
    shell_word,
)
from policyd.wire import encode

#: access(5) as far as policyd uses it, written a second time and stricter than Postfix reads it.
ACTION = re.compile(
    rb"action=(?:"
    rb"DUNNO"
    rb"|(?:HOLD|DEFER|DEFER_IF_PERMIT|REJECT|[45][0-9][0-9])(?: ([^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?))?"
    rb"|PREPEND [!-9;-~]+: [^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?"
    rb")\n\n"
)
STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}", re.ASCII)

verbs = st.sampled_from(
    [
        "DUNNO",
        "PREPEND",
        "HOLD",
        "DEFER",
        "DEFER_IF_PERMIT",
        "REJECT",
        "450",
        "451",
        "550",
        "554",
        "421",
        "OK",
        "250",
        "",
    ]
) | st.text(max_size=8)
texts = (
    st.text(max_size=60)
    | st.from_regex(r"[245]\.[0-9]{1,4}\.[0-9]{1,4} {0,3}[a-z]{0,5}", fullmatch=True)
    | st.from_regex(r"[A-Za-z-]{1,10}:{0,2} {0,2}[a-z ]{0,9}", fullmatch=True)
    | st.integers(380, 420).map(lambda n: "x" * n)
    | st.integers(190, 210).map(lambda n: "\u00e9" * n)
    | st.just("")
)


@settings(max_examples=500)
@given(verbs, texts)
@example("550", "4.7.1  two blanks")
@example("REJECT", "4.7.1 of another class")
@example("DEFER", "5.7.1")
@example("PREPEND", "X: \u00e9")
def test_what_is_made_obeys_the_grammar(verb: str, text: str) -> None:
    """One ``action=`` line that an independent reader takes, or ValueError: nothing between."""
    try:
        answer = make_answer(verb, text)
    except ValueError:
        return
    octets = encode(answer)
    assert ACTION.fullmatch(octets), octets
    assert octets.count(b"\n") == 2
    assert len(answer.text.encode()) <= MAX_TEXT_BYTES
    first, _, rest = answer.text.partition(" ")
    if STATUS.fullmatch(first) and verb != "PREPEND":
        assert rest.strip(), "a status code with no text after it"
        replied = {"REJECT": "5", "DEFER": "4", "DEFER_IF_PERMIT": "4"}.get(verb, verb[0])
        assert first[0] == replied, "a status code of another class"
    if verb.isdigit():
        assert answer.text


@pytest.mark.parametrize(
    ("verb", "text", "why"),
    [
        ("OK", "", "no action"),
        ("ok", "", "no action"),
        ("dunno", "", "no action"),
        ("", "", "no action"),
        ("250", "fine", "no action"),
        ("4500", "x", "no action"),
        ("450\n", "x", "no action"),
        ("\u0664\u0665\u0660", "x", "no action"),
        ("DISCARD", "x", "no action"),
        ("DUNNO", "x", "takes no text"),
        ("550", "", "has no text after it"),
        ("550", "5.7.1", "has no text after it"),
        ("REJECT", "5.7.1", "has no text after it"),
        ("HOLD", "4.7.1", "has no text after it"),
        ("550", "4.7.1 no", "another class"),
        ("550", "4.7.1   no", "another class"),
        ("450", "5.7.1 no", "another class"),
        ("451", "2.0.0 no", "another class"),
        ("REJECT", "4.7.1 no", "another class"),
        ("DEFER", "5.7.1 no", "another class"),
        ("DEFER_IF_PERMIT", "5.7.1 no", "another class"),
        ("REJECT", "two\nlines", "not printable"),
        ("REJECT", "two\r\nlines", "not printable"),
        ("REJECT", "nul\0", "not printable"),
        ("REJECT", "line\u2028separator", "not printable"),
        ("REJECT", "next\u0085line", "not printable"),
        ("REJECT", "right-to-left \u202e", "not printable"),
        ("REJECT", "surrogate \udcff", "not printable"),
        ("REJECT", " blank", "white space around"),
        ("REJECT", "blank ", "white space around"),
        ("REJECT", "x" * 401, "longer than 400 bytes"),
        ("REJECT", "\u00e9" * 201, "longer than 400 bytes"),
        ("PREPEND", "", "needs one header"),
        ("PREPEND", "X-Policy", "needs one header"),
        ("PREPEND", "X-Policy:", "needs one header"),
        ("PREPEND", "X-Policy:value", "needs one header"),
        ("PREPEND", "X Policy: value", "needs one header"),
        ("PREPEND", ": value", "needs one header"),
        ("PREPEND", "\u00dc: value", "needs one header"),
    ],
)
def test_what_breaks_the_grammar_is_named(verb: str, text: str, why: str) -> None:
    """Each rule of the grammar has its own error."""
    with pytest.raises(ValueError, match=why):
        make_answer(verb, text)


def test_exactly_400_bytes_fit() -> None:
    """In octets, not in characters."""
    assert make_answer("REJECT", "\u00e9" * 200).text == "\u00e9" * 200
    assert make_answer("REJECT", "x" * 400).text == "x" * 400


def test_a_refusal_beats_hold_beats_a_header_beats_dunno() -> None:
    """The order in which one answer is chosen of several."""
    assert PASS < HEADER < HOLD < REFUSE
    assert DUNNO.strength == PASS
    assert make_answer("PREPEND", "X: y").strength == HEADER
    assert make_answer("HOLD").strength == HOLD
    for verb in ("DEFER", "DEFER_IF_PERMIT", "REJECT", "450", "550", "421"):
        assert make_answer(verb, "text").strength == REFUSE


def test_an_answer_reads_as_postfix_reads_it() -> None:
    """In the log and in `policyctl explain`."""
    assert str(DUNNO) == "DUNNO"
    assert str(Answer("450", "4.7.1 later")) == "450 4.7.1 later"


hostile = (
    st.text()
    | st.text("\\\n\r\0\x1b\u202e\udc80\U0001f600%{}\"' a", max_size=400)
    | st.text("ab", min_size=150, max_size=300)
)


@settings(max_examples=250)
@given(hostile, st.integers(10, 250))
def test_escaped_text_is_printable_ascii_and_bounded(text: str, limit: int) -> None:
    """No line break, no terminal sequence, no lone surrogate; and never longer than asked."""
    safe = escape(text, limit)
    assert safe.isascii()
    assert safe == "" or safe.isprintable()
    assert len(safe) <= limit
    if len(text) > limit:
        assert safe.endswith("...")


@given(hostile)
def test_escaping_keeps_texts_apart(text: str) -> None:
    """What was not cut can be read back exactly, so two senders never look the same in a log."""
    safe = escape(text, 10_000)
    if len(safe) < 9_000:
        assert safe.encode().decode("unicode_escape") == text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("alice@example.org", "alice@example.org"),
        ("a\\b", "a\\\\b"),
        ("\\n", "\\\\n"),
        ("\n", "\\n"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u00e9", "\\xe9"),
        ("\u4f8b", "\\u4f8b"),
        ("\U0001f600", "\\U0001f600"),
        ("\udcff", "\\udcff"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
        ("", ""),
    ],
)
def test_escape_vectors(text: str, safe: str) -> None:
    """The forms named in its docstring."""
    assert escape(text) == safe


@settings(max_examples=500)
@given(
    hostile | st.integers(390, 410).map(lambda n: "\u4f8b" * n) | st.integers(390, 410).map(lambda n: "x" * n)
)
def test_clipped_text_always_makes_an_answer(text: str) -> None:
    """Whatever was filled into a text at run time, the answer can be made."""
    clipped = clip("refused " + text)
    assert len(clipped.encode()) <= MAX_TEXT_BYTES
    assert ACTION.fullmatch(encode(make_answer("REJECT", clipped)))
    assert clip(clipped) == clipped


def test_clip_marks_what_it_cut_and_what_it_replaced() -> None:
    """Three dots at the end, a question mark for what cannot be printed."""
    assert clip("a\nb\u2028c") == "a?b?c"
    assert clip("  blanks around  ") == "blanks around"
    assert clip("x" * 400) == "x" * 400
    assert clip("x" * 401) == "x" * 397 + "..."
    assert clip("\u4f8b" * 200) == "\u4f8b" * 132 + "..."


@settings(max_examples=30)
@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12),
        min_size=1,
    )
)
@example(
    [
        "",
        "EXAMPLE\\jdoe",
        "j\u00fcrgen@example.org",
        "x'; touch /tmp/x",
        "$(id)",
        "`id`",
        "\u00e9A",
        "a\nb",
        "<>",
    ]
)
def test_a_word_of_a_command_to_paste_is_the_same_text_to_the_command(words: list[str]) -> None:
    """In bash, in ASCII on one line, and whole however long it is."""
    pasted = [shell_word(word) for word in [*words, "a" * 250]]
    assert all(word.isascii() and word.isprintable() for word in pasted)
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(pasted)}"], capture_output=True, check=True, timeout=60
    )
    assert said.stdout.decode().split("\0")[:-1] == [*words, "a" * 250]
