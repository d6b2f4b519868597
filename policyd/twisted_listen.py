"""Listeners that are Twisted endpoint strings: ``tcp:10047:interface=127.0.0.1``, ``haproxy:tcp:…`` and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from policyd.config import Listener
from policyd.errors import UserError
from policyd.session import Session

if TYPE_CHECKING:
    from policyd.listen import Listening


@implementer(IHalfCloseableProtocol, IPushProducer)
class TwistedPolicy(Protocol):
    """A session on a Twisted transport: its answers are what it produces, at the pace at which the peer takes them."""

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
            transport.registerProducer(self, True)
            self._listening.sessions.add(self._session)

    def dataReceived(self, data: bytes) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        if self._session is not None:
            self._session.data_received(data)

    def readConnectionLost(self) -> None:
        """See :class:`twisted.internet.interfaces.IHalfCloseableProtocol`."""
        if self._session is not None:
            self._session.ended()

    def writeConnectionLost(self) -> None:
        """See :class:`twisted.internet.interfaces.IHalfCloseableProtocol`."""

    def pauseProducing(self) -> None:
        """See :class:`twisted.internet.interfaces.IPushProducer`."""
        if self._session is not None:
            self._session.writable(False)

    def resumeProducing(self) -> None:
        """See :class:`twisted.internet.interfaces.IPushProducer`."""
        if self._session is not None:
            self._session.writable(True)

    def stopProducing(self) -> None:
        """See :class:`twisted.internet.interfaces.IPushProducer`; ``connectionLost`` follows."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        if self._session is not None:
            self._session.lost()
            self._listening.sessions.discard(self._session)


class _Transport:
    """What a session needs, in Twisted's words."""

    def __init__(self, transport: Any) -> None:
        self.write = transport.write
        self.pause_reading = transport.pauseProducing
        self.resume_reading = transport.resumeProducing
        self._transport = transport

    def close(self) -> None:
        """See :class:`policyd.session.Transport`."""
        # A producer that was told to pause would be waited for.
        self._transport.unregisterProducer()
        self._transport.loseConnection()


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

    def vanished(self) -> bool:
        """See :class:`policyd.listen.Port`; Twisted's own endpoints are not looked after."""
        return False

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
    except Exception as error:  # whatever a plug-in of Twisted's raises about a string of the admin's
        raise UserError(
            f"{listener.address} is no Twisted endpoint: {error}; "
            "write it as tcp:10047:interface=127.0.0.1, or see endpoints in Twisted's manual"
        ) from error
    try:
        port = await endpoint.listen(_PolicyFactory(listening, listener)).asFuture(loop)
    except Exception as error:  # of a plug-in's own kind, too
        raise UserError(f"cannot listen on {listener.address}: {error}") from error
    return _EndpointPort(port, loop)
