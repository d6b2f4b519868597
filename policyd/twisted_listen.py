"""Listeners that are Twisted endpoint strings: ``tcp:10047:interface=127.0.0.1``, ``haproxy:tcp:…`` and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from policyd.config import Listener
from policyd.errors import UserError
from policyd.session import Session

if TYPE_CHECKING:
    from policyd.listen import Listening


class TwistedPolicy(Protocol):
    """A session on a Twisted transport."""

    def __init__(self, listening: Listening, listener: Listener) -> None:
        self._listening = listening
        self._listener = listener
        self._session: Session | None = None

    def connectionMade(self) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        transport: Any = self.transport
        host = getattr(transport.getPeer(), "host", "")
        self._session = self._listening.session(self._listener, _Transport(transport), (host,))
        if self._session is None:
            transport.loseConnection()
        else:
            self._listening.sessions.add(self._session)

    def dataReceived(self, data: bytes) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        if self._session is not None:
            self._session.data_received(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        if self._session is not None:
            self._session.lost()
            self._listening.sessions.discard(self._session)


class _Transport:
    """What a session needs, in Twisted's words."""

    def __init__(self, transport: Any) -> None:
        self.write = transport.write
        self.close = transport.loseConnection
        self.pause_reading = transport.pauseProducing
        self.resume_reading = transport.resumeProducing


class _PolicyFactory(Factory):
    noisy = False

    def __init__(self, listening: Listening, listener: Listener) -> None:
        self._listening = listening
        self._listener = listener

    def buildProtocol(self, addr: IAddress | None) -> TwistedPolicy:
        """See :class:`twisted.internet.protocol.Factory`."""
        return TwistedPolicy(self._listening, self._listener)


class _EndpointPort:
    def __init__(self, port: Any, loop: Any) -> None:
        self._port = port
        self._loop = loop

    async def close(self) -> None:
        """See :class:`policyd.listen.Port`."""
        stopped = self._port.stopListening()
        if stopped is not None:
            await stopped.asFuture(self._loop)


async def open_endpoint(listening: Listening, listener: Listener) -> _EndpointPort:
    """Listen on an endpoint string.

    :raises UserError: Twisted does not take the string, or cannot listen.
    """
    loop = listening.desk.loop
    try:
        endpoint = serverFromString(cast("Any", reactor), listener.address)  # type: ignore[no-untyped-call]
        port = await endpoint.listen(_PolicyFactory(listening, listener)).asFuture(loop)
    except Exception as error:  # whatever a plug-in of Twisted's raises about a string of the admin's
        raise UserError(f"cannot listen on {listener.address}: {error}") from error
    return _EndpointPort(port, loop)
