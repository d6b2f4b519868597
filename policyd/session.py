"""One connection from Postfix: bytes in, answers out, in order, one request at a time.

The same code serves the loop's own transports and Twisted's: it needs a transport that can write, close, pause and resume.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from policyd.answer import Answer, escape
from policyd.desk import Asked, Desk
from policyd.errors import ProtocolError
from policyd.wire import MAX_REQUEST, RequestParser, encode, kept_attributes

log = logging.getLogger("policyd.session")

#: Time for the rest of a request that has begun, s.
HALF_REQUEST = 30.0
#: Idle connections are kept for so long, s; Postfix closes after at most 1000 (smtpd_policy_service_max_ttl).
IDLE = 3_600.0


class Transport(Protocol):
    """What a session needs of its transport."""

    def write(self, data: bytes) -> None:
        """Send."""

    def close(self) -> None:
        """Send what is written, then close."""

    def pause_reading(self) -> None:
        """Receive nothing for now."""

    def resume_reading(self) -> None:
        """Receive again."""


class Session:
    """The state of one connection."""

    __slots__ = (
        "_broken",
        "_busy",
        "_closing",
        "_desk",
        "_direction",
        "_ended",
        "_label",
        "_new",
        "_parser",
        "_paused",
        "_peer",
        "_since",
        "_transport",
        "_writable",
    )

    def __init__(self, desk: Desk, transport: Transport, label: str, direction: str, peer: str) -> None:
        self._desk = desk
        self._transport = transport
        self._label = label
        self._direction = direction
        self._peer = peer
        self._parser = RequestParser(kept_attributes)
        self._busy = False
        self._new = True
        self._paused = False
        self._writable = True
        #: The peer will send nothing more.
        self._ended = False
        self._closing = False
        #: What broke the protocol.
        self._broken = ""
        #: Since when (monotonic, s) the session waits for the peer.
        self._since = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a request is being decided."""
        return self._busy

    @property
    def new(self) -> bool:
        """Whether nothing was asked yet."""
        return self._new and not self._closing

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._closing:
            return
        if not self._parser.pending:
            self._since = time.monotonic()
        self._parser.feed(data)
        if not self._busy and self._writable:
            self._desk.ready(self)
        if self._parser.pending > MAX_REQUEST and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def ended(self) -> None:
        """The peer will send nothing more; what it asked is still answered."""
        self._ended = True
        if not self._busy:
            self._desk.ready(self)

    def writable(self, can: bool) -> None:
        """The peer takes answers, or does not at the moment."""
        self._writable = can
        if can and not self._busy:
            self._desk.ready(self)

    def lost(self) -> None:
        """The connection is gone; a request that is being decided is decided to its end."""
        self._closing = True

    def finish(self) -> None:
        """Close as soon as no request is being decided."""
        self._ended = True
        if not self._paused and not self._closing:
            self._paused = True
            self._transport.pause_reading()
        # At once: nobody waits for what is only about to be taken up.
        asked = self.next_request()
        if asked is not None:
            self._desk.take([asked])

    def check_time(self, now: float) -> None:
        """Close if half a request, or nothing, has come for too long."""
        if not self._busy and not self._closing:
            waited = now - self._since
            if self._parser.pending and waited > HALF_REQUEST:
                log.warning("%s: half a request for %d s; disconnected", self._peer, waited)
                self._close()
            elif waited > IDLE:
                self._close()

    def next_request(self) -> Asked | None:
        """See :class:`policyd.desk.Asking`. With no request left and nothing to come, the connection is closed."""
        if self._busy or self._closing or not self._writable:
            return None
        try:
            attributes = None if self._broken or not self._parser.pending else self._parser.next_request()
        except ProtocolError as error:
            self._broken = str(error)
            attributes = None
        if attributes is not None:
            self._busy, self._new = True, False
            return Asked(attributes, self._label, self._direction, self._reply)
        if self._broken:
            # Postfix's own document asks for this: no answer, a log line, a disconnect (SMTPD_POLICY_README).
            log.warning("%s: no policy request: %s; disconnected", self._peer, escape(self._broken))
            self._close()
        elif self._ended:
            self._close()
        elif self._paused:
            self._paused = False
            self._transport.resume_reading()
        return None

    def _reply(self, answer: Answer) -> None:
        self._busy = False
        self._since = time.monotonic()
        if self._closing:
            return
        self._transport.write(encode(answer))
        if self._parser.pending or self._ended or self._paused:
            self._desk.ready(self)

    def _close(self) -> None:
        if not self._closing:
            self._closing = True
            self._transport.close()


class PolicyProtocol(asyncio.Protocol):
    """A session on one of the loop's own transports."""

    __slots__ = ("_make", "_session", "_sessions")

    def __init__(self, make: Callable[[Transport, Any], Session | None], sessions: set[Session]) -> None:
        """
        :param make: makes the session for a transport and the peer's address, or refuses with ``None``.
        """
        self._make = make
        self._sessions = sessions
        self._session: Session | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._session = self._make(transport, transport.get_extra_info("peername"))  # type: ignore[arg-type]
        if self._session is None:
            transport.close()
        else:
            self._sessions.add(self._session)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._session is not None:
            self._session.data_received(data)

    def eof_received(self) -> bool:
        """See :class:`asyncio.Protocol`."""
        if self._session is None:
            return False
        self._session.ended()
        return True

    def pause_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._session is not None:
            self._session.writable(False)

    def resume_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._session is not None:
            self._session.writable(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._session is not None:
            self._session.lost()
            self._sessions.discard(self._session)
