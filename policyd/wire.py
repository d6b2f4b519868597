"""The policy protocol as bytes: ``feed`` what arrived, take ``next_request``, ``encode`` the answer. No socket, no clock.

Grammar (Postfix SMTPD_POLICY_README, src/util/attr_scan_plain.c)::

    request   = 1*( name "=" value LF ) LF
    name      = 1*( any octet except "=", NUL and LF )
    value     = *( any octet except NUL and LF )         ; may hold "="
    answer    = "action=" text LF LF

``request=smtpd_access_policy`` is required. Attributes come in any order; unknown ones are ignored by whoever reads; of
duplicates the first counts. What breaks the grammar or a limit is a :class:`ProtocolError`, after which the stream
cannot be trusted: the server answers what came before, logs once, and disconnects.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import methodcaller
from typing import Generic, TypeVar

from policyd.answer import Answer
from policyd.errors import ProtocolError
from policyd.request import Attributes

#: Octets of one request; Postfix 3.12 sends about 1 KiB.
MAX_REQUEST = 64 * 1024
#: Octets of one line, the LF left out.
MAX_LINE = 8 * 1024
#: Attributes of one request; Postfix 3.12 sends 33, its own receiver takes 1024.
MAX_ATTRIBUTES = 256

REQUEST_TYPE = "smtpd_access_policy"

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: ``line.split("=", 1)``, without a step of the interpreter for each line.
_split_pair = methodcaller("split", "=", 1)


T = TypeVar("T")


class RequestParser(Generic[T]):
    """Cuts a stream of bytes into requests."""

    __slots__ = ("_buffer", "_line", "_read", "_scanned")

    def __init__(self, read: Callable[[bytes], T]) -> None:
        """
        :param read: reads one request: :func:`parse_attributes`, or :func:`kept_attributes`.
        """
        self._read = read
        self._buffer = bytearray()
        self._scanned = 0
        #: Where the last line begins, as far as it was scanned.
        self._line = 0

    def feed(self, data: bytes) -> None:
        """Take what arrived, in pieces of any size."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """Octets received and not yet taken as a request."""
        return len(self._buffer)

    def next_request(self) -> T | None:
        """The next complete request, as ``read`` makes it, or ``None`` while there is none.

        Text is UTF-8; octets that are not stand as ``\\xNN``, so every value can be stored and printed.

        :raises ProtocolError: the bytes are no request; the parser must not be used any further.
        """
        buffer = self._buffer
        end = buffer.find(b"\n\n", self._scanned)
        if end == -1:
            if buffer[:1] == b"\n":
                raise ProtocolError("an empty request")
            # The last line's LF may be here already, and is not part of the request's size.
            if len(buffer) > MAX_REQUEST + 1:
                raise ProtocolError(f"a request of more than {MAX_REQUEST} octets")
            newline = buffer.rfind(b"\n", self._scanned)
            if newline != -1:
                self._line = newline + 1
            if len(buffer) - self._line > MAX_LINE:
                raise ProtocolError(f"a line of more than {MAX_LINE} octets")
            self._scanned = max(0, len(buffer) - 1)
            return None
        if end > MAX_REQUEST:
            raise ProtocolError(f"a request of more than {MAX_REQUEST} octets")
        block = bytes(buffer[:end])
        del buffer[: end + 2]
        self._scanned = self._line = 0
        return self._read(block)


def _as_postfix_sends_it() -> re.Pattern[str]:
    """A whole request as Postfix from 3.2 on sends it, in its order (smtpd_check.c); newer attributes come at the end.

    Its groups are the fields of :class:`Attributes`, by name.
    """
    names = [
        "protocol_state",
        "protocol_name",
        "client_address",
        "client_name",
        "client_port",
        "reverse_client_name",
        "server_address",
        "server_port",
        "helo_name",
        "sender",
        "recipient",
        "recipient_count",
        "queue_id",
        "instance",
        "size",
        "etrn_domain",
        "stress",
        "sasl_method",
        "sasl_username",
        "sasl_sender",
        "ccert_subject",
        "ccert_issuer",
        "ccert_fingerprint",
        "ccert_pubkey_fingerprint",
        "encryption_protocol",
        "encryption_cipher",
        "encryption_keysize",
        "policy_context",
    ]
    kept = Attributes._fields
    known = "".join(f"\n{name}=(?P<{name}>.*)" if name in kept else f"\n{name}=.*" for name in names)
    # The first attribute of a name counts, and these were there already: so others alone can follow.
    more = rf"(?:\n(?!(?:{'|'.join(kept)})=)[^=\n]+=.*)*"
    return re.compile(f"request={REQUEST_TYPE}{known}{more}")


_POSTFIX = _as_postfix_sends_it()
_ORDER = tuple(_POSTFIX.groupindex[name] for name in Attributes._fields)


def kept_attributes(block: bytes) -> Attributes:
    """What is kept of one request, given without the empty line at its end: what :func:`parse_attributes` finds.

    Nearly all requests are as Postfix sends them, and one look along such a one picks out what is kept.

    :raises ProtocolError: it breaks the grammar or a limit.
    """
    if (
        len(block) <= MAX_LINE
        and block.count(b"\n") < MAX_ATTRIBUTES
        and block.isascii()
        and b"\0" not in block
    ):
        found = _POSTFIX.fullmatch(block.decode("ascii"))
        if found is not None:
            return _new(Attributes, found.group(*_ORDER))
    return Attributes.of(parse_attributes(block))


def parse_attributes(block: bytes) -> dict[str, str]:
    """The attributes of one request, given without the empty line at its end.

    :raises ProtocolError: it breaks the grammar or a limit.
    """
    if b"\0" in block:
        raise ProtocolError("a NUL octet")
    if block[:1] == b"\n" or not block:
        raise ProtocolError("an empty request")
    if block.count(b"\n") >= MAX_ATTRIBUTES:
        raise ProtocolError(f"more than {MAX_ATTRIBUTES} attributes")
    if len(block) > MAX_LINE and max(map(len, block.split(b"\n"))) > MAX_LINE:
        raise ProtocolError(f"a line of more than {MAX_LINE} octets")
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = block.decode("utf-8", "backslashreplace")
    # Nearly always each line has one "=": then one split does for all of them.
    parts = text.replace("\n", "=\n=").split("=")
    lines = (len(parts) + 1) // 3
    if len(parts) == 3 * lines - 1 and parts[2::3].count("\n") == lines - 1:
        attributes = dict(zip(parts[::3], parts[1::3], strict=True))
        if len(attributes) == lines:
            return _checked(attributes)
    # The last of equal keys wins in dict(), so the reversed order lets the first attribute of a name count.
    pairs = list(map(_split_pair, text.split("\n")))
    pairs.reverse()
    try:
        attributes = dict(pairs)
    except ValueError:
        raise ProtocolError("a line without '='") from None
    return _checked(attributes)


def _checked(attributes: dict[str, str]) -> dict[str, str]:
    if "" in attributes:
        raise ProtocolError("an attribute without a name")
    if attributes.get("request") != REQUEST_TYPE:
        raise ProtocolError("no request=smtpd_access_policy")
    return attributes


def encode(answer: Answer) -> bytes:
    """The bytes that carry ``answer`` to Postfix."""
    return (
        f"action={answer.verb} {answer.text}\n\n".encode()
        if answer.text
        else f"action={answer.verb}\n\n".encode()
    )
