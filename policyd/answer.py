"""What policyd tells Postfix: one action, checked against a grammar when it is made.

The grammar (access(5), and the reasons in each rule):

* The first word is one of a known set. An unknown word would be taken for a restriction class, an empty one permits.
  ``OK`` is not in the set: it would skip the restrictions after policyd.
* A status code is always followed by text. A bare enhanced code could crash Postfix (CVE-2026-43964).
* The class of the enhanced code equals that of the reply code (RFC 3463).
* One line, printable, at most 400 bytes of UTF-8: a reply cannot hold a line break.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

MAX_TEXT_BYTES = 400

#: What an answer means for the mail, weakest first; a stronger one beats a weaker one.
PASS, HEADER, HOLD, REFUSE = range(4)

_STRENGTH = {
    "DUNNO": PASS,
    "PREPEND": HEADER,
    "HOLD": HOLD,
    "DEFER": REFUSE,
    "DEFER_IF_PERMIT": REFUSE,
    "REJECT": REFUSE,
}
_CODE = re.compile(r"[45][0-9][0-9]", re.ASCII)
_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?: +|$)", re.ASCII)
#: The class of the reply that Postfix gives for a word, unless main.cf says otherwise (access(5)).
_CLASS = {"REJECT": "5", "DEFER": "4", "DEFER_IF_PERMIT": "4"}
_HEADER = re.compile(r"[!-9;-~]+: \S", re.ASCII)


class Answer(NamedTuple):
    """One action. ``verb`` is a word of access(5) or a reply code, ``text`` what stands after it."""

    verb: str
    text: str = ""

    @property
    def strength(self) -> int:
        """``PASS``, ``HEADER``, ``HOLD`` or ``REFUSE``."""
        return _STRENGTH.get(self.verb, REFUSE)

    def __str__(self) -> str:
        return f"{self.verb} {self.text}" if self.text else self.verb


DUNNO = Answer("DUNNO")


def make_answer(verb: str, text: str = "") -> Answer:
    """An :class:`Answer` that obeys the grammar; :class:`ValueError` says which rule was broken."""
    if verb not in _STRENGTH and not _CODE.fullmatch(verb):
        raise ValueError(f"{verb!r} is no action that policyd sends")
    if verb == "DUNNO" and text:
        raise ValueError("DUNNO takes no text")
    if not text.isprintable():
        raise ValueError("the text has a character that is not printable")
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ValueError(f"the text is longer than {MAX_TEXT_BYTES} bytes")
    if text != text.strip():
        raise ValueError("the text has white space around it")
    if verb == "PREPEND" and not _HEADER.match(text):
        raise ValueError("PREPEND needs one header, 'Name: value'")
    enhanced = _ENHANCED.match(text)
    if enhanced and enhanced.end() == len(text):
        raise ValueError(f"the status code {text} has no text after it")
    if not text and _CODE.fullmatch(verb):
        raise ValueError(f"the reply code {verb} has no text after it")
    if enhanced and enhanced[1] != _CLASS.get(verb, verb[0]):
        raise ValueError(f"the status code {enhanced[0].strip()} is of another class than {verb}")
    return Answer(verb, text)


def escape(text: str, limit: int = 200) -> str:
    """``text`` from outside made fit for an answer or a log: ASCII, printable, at most ``limit`` characters.

    What is not printable ASCII becomes ``\\xNN``, ``\\uNNNN`` or ``\\UNNNNNNNN``, a backslash is doubled. A text that
    was cut ends in ``...``.
    """
    # One more than fits, so that what was cut is seen to be cut.
    text = text[: limit + 1]
    if not (text.isascii() and text.isprintable() and "\\" not in text):
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shell_word(text: str) -> str:
    """``text`` from outside as one word of a command that is printed to be pasted: ASCII, and to the command the same text.

    What is not printable ASCII stands as ``\\xNN`` between ``$'`` and ``'``, which bash, zsh and ksh read.
    """
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    octets = text.encode("utf-8", "backslashreplace")
    plain = "".join(
        chr(octet) if 32 <= octet < 127 and octet not in b"\\'" else f"\\x{octet:02x}" for octet in octets
    )
    return f"$'{plain}'"


def clip(text: str) -> str:
    """``text`` as one printable line of at most 400 bytes, for a text that was filled in at run time."""
    if not text.isprintable():
        text = "".join(ch if ch.isprintable() else "?" for ch in text)
    text = text.strip()
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > MAX_TEXT_BYTES:
        text = encoded[: MAX_TEXT_BYTES - 3].decode("utf-8", "ignore").rstrip() + "..."
    return text


def fill_ref(text: str, ref: str) -> str:
    """``text`` with its reference filled in."""
    return text.replace("{ref}", ref)


def with_ref(answer: Answer, ref: str) -> Answer:
    """A refusal that carries ``ref``: where its text says so, else at its end; a text that is too long gives way."""
    if "{ref}" in answer.text:
        text = clip(fill_ref(answer.text, ref))
        if ref in text:
            return Answer(answer.verb, text)
    tail = f" ref {ref}"
    text = answer.text.encode("utf-8", "replace")[: MAX_TEXT_BYTES - len(tail)].decode("utf-8", "ignore")
    return Answer(answer.verb, clip(text.rstrip() + tail))


def parse_action(action: str) -> Answer:
    """The answer that was written down as ``str(answer)``."""
    verb, _, text = action.partition(" ")
    return Answer(verb, text)
