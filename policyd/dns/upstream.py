"""One nameserver: questions to it over UDP and TCP, and whether it answers at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from policyd.dns.inbox import Inbox
from policyd.dns.message import Question, Reply, answers, make_question, read_reply
from policyd.dns.nameservers import parse_nameserver, write_nameserver
from policyd.lookup import UNKNOWN

#: What a resolver answers by itself, whatever becomes of the rest of the world (RFC 6761 6.3).
PROBE = make_question("localhost", "A")
#: Read at once from one socket; who sends more wrong datagrams than that waits for the loop's next round.
_ROUND = 16
_MOST_DATAGRAM = 65_535

UNREACHABLE = Reply(UNKNOWN, why="nameserver unreachable")
NO_TCP = Reply(UNKNOWN, why="truncated, and no answer over TCP")


class Exchange:
    """One question to one nameserver, until an answer to it comes. Everything else that comes is passed over.

    It has a socket of its own: a port that nobody can guess, and the system lets through what comes from the nameserver's
    address and port alone (RFC 5452 9.2).
    """

    __slots__ = (
        "_edns",
        "_identity",
        "_loop",
        "_nameserver",
        "_sent",
        "_socket",
        "_task",
        "future",
        "question",
    )

    def __init__(self, nameserver: Nameserver, question: Question, loop: asyncio.AbstractEventLoop) -> None:
        self.question = question
        #: The answer; an :data:`UNREACHABLE` where nothing can be sent. It has no timeout: see :meth:`close`.
        self.future: asyncio.Future[Reply] = loop.create_future()
        self._loop = loop
        self._nameserver = nameserver
        self._identity = int.from_bytes(os.urandom(2), "big")
        self._edns = True
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._sent = 0.0
        try:
            self._socket = nameserver.connected()
        except OSError as error:
            nameserver.asked()
            self._unreachable(error)
            return
        loop.add_reader(self._socket.fileno(), self._readable)
        self.send()

    def send(self) -> None:
        """Ask, or ask again: the first datagram may be lost."""
        if self._socket is None or self.future.done() or self._task is not None:
            return
        self._sent = self._loop.time()
        self._nameserver.asked()
        try:
            self._socket.send(self.question.wire(self._identity, edns=self._edns))
        except BlockingIOError:
            pass  # as good as lost on the way
        except OSError as error:
            self._unreachable(error)

    def _readable(self) -> None:
        for _ in range(_ROUND):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(_MOST_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # ICMP: nobody listens there.
                self._unreachable(error)
                return
            if answers(self.question, self._identity, data):
                self._nameserver.inbox.put(self._take, data)

    def _take(self, data: bytes) -> None:
        if self.future.done() or self._task is not None:
            return
        try:
            reply = read_reply(self.question, data)
        except ValueError:
            self._nameserver.malformed += 1
            return
        self._nameserver.answered(self._loop.time() - self._sent)
        if reply.truncated:
            self._close_socket()
            self._task = self._loop.create_task(self._over_tcp())
        elif reply.why in ("formerr", "notimp") and self._edns:
            self._edns = False
            self.send()
        else:
            self._end(reply)

    async def _over_tcp(self) -> None:
        reply = NO_TCP
        writer = None
        try:
            reader, writer = await asyncio.open_connection(self._nameserver.host, self._nameserver.port)
            wire = self.question.wire(self._identity, edns=self._edns)
            writer.write(len(wire).to_bytes(2, "big") + wire)
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            if answers(self.question, self._identity, data):
                reply = read_reply(self.question, data)
        except (OSError, EOFError, ValueError):
            pass
        finally:
            if writer is not None:
                writer.transport.abort()
        self._end(NO_TCP if reply.truncated else reply)

    def _unreachable(self, error: OSError) -> None:
        self._nameserver.trouble = error.strerror or str(error)
        self._end(UNREACHABLE)

    def _end(self, reply: Reply) -> None:
        self._close_socket()
        if not self.future.done():
            if reply.status == UNKNOWN:
                self._nameserver.failures += 1
            self.future.set_result(reply)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Wait no more."""
        self._close_socket()
        if self._task is not None:
            self._task.cancel()
        if not self.future.done():
            self.future.cancel()


class Nameserver:
    """One nameserver and its figures.

    It is down when it has left questions without any answer for a quarter of the timeout, and then the probe for all of
    it: one slow zone behind a good resolver is no reason. While it is down it is probed until it answers.
    """

    def __init__(
        self,
        text: str,
        timeout: float,
        changed: Callable[[Nameserver], None],
        wall: Callable[[], float],
        inbox: Inbox,
    ) -> None:
        """
        :param text: as in the configuration.
        :param timeout: in which a question has to be answered, s.
        :param changed: told when it went down or up.
        :param wall: the wall clock, s, for :attr:`since`.
        :param inbox: where its answers wait to be read.
        """
        self.host, self.port = parse_nameserver(text)
        self.text = write_nameserver(self.host, self.port)
        self.up = True
        #: Since when it is as it is, wall clock, s.
        self.since = wall()
        self.questions = self.answers = self.failures = self.timeouts = self.malformed = 0
        #: What the system said when it could not be asked last, since it answered last.
        self.trouble = ""
        #: A moving mean over the last some 16 answers, s.
        self.latency = 0.0
        self._timeout = timeout
        self._changed = changed
        self._wall = wall
        self.inbox = inbox
        self._family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._waiting = False
        self._doubt: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._closed = False

    def connected(self) -> socket.socket:
        """A new socket that speaks to this nameserver alone."""
        new = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            new.connect((self.host, self.port))
        except OSError:
            new.close()
            raise
        return new

    def exchange(self, question: Question) -> Exchange:
        """Ask it."""
        return Exchange(self, question, asyncio.get_running_loop())

    def asked(self) -> None:
        """A question was sent."""
        self.questions += 1
        if not self._waiting and not self._closed:
            self._waiting = True
            if self._probing is None:
                self._doubt = asyncio.get_running_loop().call_later(self._timeout / 4, self._suspect)

    def answered(self, seconds: float) -> None:
        """An answer came, whatever it says, ``seconds`` after its question."""
        self.answers += 1
        self.latency += (seconds - self.latency) / min(self.answers, 16)
        self._waiting, self.trouble = False, ""
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        if not self.up and not self._closed:
            self._turn(up=True)

    def _suspect(self) -> None:
        self._doubt = None
        if self._waiting and self._probing is None and not self._closed:
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Ask the probe until there is an answer; it is down when the first round brings none."""
        try:
            while not await self._probe_round():
                if self.up:
                    self._turn(up=False)
        finally:
            self._probing = None
            if self._waiting and not self._closed:
                # Asked while the probe was under way.
                self._doubt = asyncio.get_running_loop().call_later(self._timeout / 4, self._suspect)

    async def _probe_round(self) -> bool:
        """Whether the nameserver answered anything within the timeout. The question is sent four times meanwhile."""
        before = self.answers
        exchange = self.exchange(PROBE)
        try:
            for _ in range(4):
                await asyncio.wait([exchange.future], timeout=self._timeout / 4)
                if self.answers != before:
                    return True
                if exchange.future.done():
                    # Unreachable is known at once; the pace stays the same.
                    await asyncio.sleep(self._timeout / 4)
                    exchange = self.exchange(PROBE)
                else:
                    exchange.send()
            return False
        finally:
            exchange.close()

    def _turn(self, *, up: bool) -> None:
        self.up, self.since = up, self._wall()
        self._changed(self)

    def close(self) -> None:
        """Probe no more."""
        self._closed = True
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        if self._probing is not None:
            with contextlib.suppress(RuntimeError):  # its loop may have ended before
                self._probing.cancel()
