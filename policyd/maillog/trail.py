"""From lines of a Postfix log to the mails that accounts have sent. Pure: lines in, mails out.

A mail is what lines with one queue id of one host say together (Postfix 3.5 to 3.12)::

    smtpd[1]: ID: client=NAME[IP], sasl_method=PLAIN, sasl_username=LOGIN
    qmgr[2]: ID: from=<SENDER>, size=OCTETS, nrcpt=NUMBER (queue active)
    smtp[3]: ID: to=<ADDRESS>, orig_to=<ADDRESS>, relay=..., status=...
    qmgr[2]: ID: removed

It is sent when the queue manager has it for the first time. Lines are told apart by what stands right behind the queue id:
nothing that a client wrote comes there. Mail without a login is followed only from the site's own networks.

A content filter gives a mail back under a new queue id. With the filter behind the queue, the second one has no login; from an
own network it is known by ``orig_queue_id=``, ``orig_client=`` or a Message-ID that was seen under another queue id, and
left out. With a filter before the queue (smtpd_proxy_filter) the first has no queue id, and ``proxy-accept`` names the second.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple

from policyd.maillog.stamps import Stamps

#: Mails that are followed at once, and recipients of all of them; beyond that the oldest are taken as they are.
FOLLOWED = 50_000
RECIPIENTS = 300_000
#: Message-IDs that are remembered.
MESSAGE_IDS = 50_000
#: Octets of a line in which the queue id has to stand, of a value that is kept, and of a queue id.
_HEAD = 512
_LONGEST = 512
_LONGEST_ID = 24


class Mail(NamedTuple):
    """One mail that was accepted from an account."""

    #: When the queue manager had it, ms since 1970.
    at: int
    #: When, where and under which queue id it began: the same in every copy of the log.
    key: bytes
    #: The login as it was logged; empty: no login, an own client.
    user: str
    client: str
    sender: str
    size: int
    #: Recipients as the client gave them: ``nrcpt``, with what aliases made of one counted as one.
    recipients: int
    #: Those of them that deliveries name, as the client gave them.
    to: tuple[str, ...]


class _Followed:
    """A mail of which not all lines have come."""

    __slots__ = ("aliased", "at", "client", "key", "made", "mine", "nrcpt", "sender", "size", "to", "user")

    def __init__(self, key: bytes, user: bytes, client: bytes, mine: bool) -> None:
        self.key = key
        self.user = user
        self.client = client
        #: Whether it is known to be a mail of its own: not one that a filter gave back.
        self.mine = mine
        self.at = 0
        self.sender = b""
        self.size = 0
        self.nrcpt = 0
        #: Recipients as the client gave them, in order.
        self.to: dict[bytes, None] = {}
        #: Those of them that aliases replaced, and by what.
        self.aliased: set[bytes] = set()
        self.made: set[bytes] = set()


class Trail:
    """Follows mails through the lines of one or more logs, given in the order of time."""

    def __init__(self, networks: Container[str] = ()) -> None:
        """
        :param networks: the site's own; mail from there without a login is an account's too.
        """
        self._networks = networks
        self._followed: dict[bytes, _Followed] = {}
        self._recipients = 0
        self._own: dict[bytes, bool] = {}
        self._message_ids: dict[int, None] = {}
        #: By host and process: the client and login of a session that goes through a filter before the queue.
        self._proxied: dict[bytes, tuple[bytes, bytes]] = {}
        #: Lines read; those of mail with a login or from an own network that could not be made sense of.
        self.lines = 0
        self.odd = 0
        #: Mails that were begun and never queued: refused, given up by the client, or cut off by the end of the log.
        self.unfinished = 0
        #: The first and the last time of any line that was looked at, ms; 0: none.
        self.first_at = 0
        self.last_at = 0

    def feed(self, lines: Iterable[bytes], stamps: Stamps) -> list[Mail]:
        """The mails that are complete after ``lines``."""
        done: list[Mail] = []
        followed = self._followed
        count = 0
        for line in lines:
            count += 1
            colon = line.find(b"]: ", 0, _HEAD)
            if colon < 0:
                continue
            end = line.find(b": ", colon + 3, colon + 3 + _LONGEST_ID)
            if end < 0:
                continue
            what = line[end + 2 : end + 6]
            if what == b"to=<":
                known = followed.get(_key(line, colon, end))
                if known is not None:
                    self._delivery(known, line, end + 6)
            elif what == b"from":
                known = followed.get(_key(line, colon, end))
                if known is not None and not known.at:
                    self._queued(known, line, end + 2, stamps)
            elif what == b"remo":
                known = followed.get(_key(line, colon, end))
                if known is not None and line[end + 2 :].rstrip() == b"removed":
                    del followed[_key(line, colon, end)]
                    self._end(known, done)
            elif what == b"mess":
                self._message_id(line, colon, end)
            elif what == b"clie":
                self._client(line, colon, end, stamps, done)
                if len(followed) > FOLLOWED or self._recipients > RECIPIENTS:
                    self._let_go(done)
            elif what == b"END-" and line.startswith(b"proxy-accept", colon + 3):
                self._accepted(line, colon, end)
        self.lines += count
        return done

    def finish(self) -> list[Mail]:
        """Those that the log leaves in the queue."""
        done: list[Mail] = []
        for known in self._followed.values():
            self._end(known, done)
        self._followed.clear()
        return done

    def _client(self, line: bytes, colon: int, end: int, stamps: Stamps, done: list[Mail]) -> None:
        if not line.startswith(b"client=", end + 2) or not line.endswith(
            b"smtpd", 0, line.rfind(b"[", 0, colon)
        ):
            return
        value = line[end + 9 : end + 9 + 2048].rstrip()
        opened, closed = value.find(b"["), value.find(b"]")
        client, rest = value[opened + 1 : closed], value[closed + 1 :]
        if not 0 < opened < closed:
            self.odd += 1
            return
        login = rest.find(b", sasl_username=")
        user = rest[login + 16 :] if login >= 0 else b""
        queue_id = line[colon + 3 : end]
        at = stamps.ms(line)
        if at:
            self.first_at, self.last_at = self.first_at or at, max(self.last_at, at)
        if login >= 0 and (not at or not user or len(user) > 320 or b", " in user):
            # A login may not look like the attributes that can follow it: it would pass for another's.
            self.odd += 1
            return
        if queue_id == b"NOQUEUE":
            if user:
                if len(self._proxied) >= FOLLOWED:
                    self._proxied.clear()
                self._proxied[_process(line, colon)] = (user, client)
            return
        if not queue_id.isalnum():
            return
        key = _key(line, colon, end)
        before = self._followed.get(key)
        # To the minute: another copy of the log may tell the time otherwise.
        name = b"%d %b" % (at // 60_000, key)
        if before is not None:
            if before.key == name:
                # The same line in another copy of the log.
                return
            del self._followed[key]
            self._end(before, done)
        if user:
            self._followed[key] = _Followed(name, user, client, True)
        elif at and self._is_own(client):
            given_back = b", orig_queue_id=" in rest or b", orig_client=" in rest
            self._followed[key] = _Followed(name, b"", client, not given_back)

    def _is_own(self, client: bytes) -> bool:
        own = self._own.get(client)
        if own is None:
            if len(self._own) > 10_000:
                self._own.clear()
            own = self._own[client] = client.decode("latin-1") in self._networks
        return own

    def _message_id(self, line: bytes, colon: int, end: int) -> None:
        if not line.startswith(b"message-id=", end + 2):
            return
        value = line[end + 13 : end + 13 + 1024].strip()
        if len(value) < 4:
            return
        seen = self._message_ids
        if (number := hash(value)) in seen:
            known = self._followed.get(_key(line, colon, end))
            if known is not None and not known.user:
                known.mine = False
        else:
            if len(seen) >= MESSAGE_IDS:
                for old in list(seen)[: MESSAGE_IDS // 8]:
                    del seen[old]
            seen[number] = None

    def _accepted(self, line: bytes, colon: int, end: int) -> None:
        """A filter before the queue took a mail: its queue id is in the answer that it gave."""
        user, client = self._proxied.get(_process(line, colon), (b"", b""))
        begin = line.find(b"queued as ", end, end + 400)
        stop = line.find(b";", begin)
        if not user or begin < 0 or stop < 0:
            return
        known = self._followed.get(_host(line, colon) + b" " + line[begin + 10 : stop].strip())
        if known is not None and not known.user:
            known.user, known.client, known.mine = user, client, True

    def _queued(self, known: _Followed, line: bytes, begin: int, stamps: Stamps) -> None:
        text = line[begin:].rstrip() if len(line) < 8192 else b""
        # From its end: what stands before may hold anything.
        nrcpt, size = text.rfind(b", nrcpt="), text.rfind(b">, size=")
        if not (text.startswith(b"from=<") and text.endswith(b" (queue active)") and 0 < size < nrcpt):
            return
        octets, number = text[size + 8 : nrcpt], text[nrcpt + 8 : -15]
        at = stamps.ms(line)
        if not (octets.isdigit() and number.isdigit() and len(octets) < 16 and len(number) < 10 and at):
            self.odd += 1
            return
        known.at, known.sender = at, text[6:size][:_LONGEST]
        known.size, known.nrcpt = int(octets), int(number)
        self.last_at = max(self.last_at, at)

    def _delivery(self, known: _Followed, line: bytes, begin: int) -> None:
        stop = line.find(b">, ", begin, begin + _LONGEST)
        if stop < 0:
            return
        address = line[begin:stop]
        if line.startswith(b"orig_to=<", stop + 3):
            last = line.find(b">, ", stop + 12, stop + 12 + _LONGEST)
            if last >= 0:
                made, address = address, line[stop + 12 : last]
                known.aliased.add(address)
                if made not in known.made:
                    known.made.add(made)
                    self._recipients += 1
        if address and address not in known.to:
            known.to[address] = None
            self._recipients += 1

    def _end(self, known: _Followed, done: list[Mail]) -> None:
        """All that will be known of it is."""
        self._recipients -= len(known.to) + len(known.made)
        if not known.mine:
            return
        if not known.at:
            self.unfinished += 1
            return
        # nrcpt counts what aliases made before the mail was queued; what they make later it does not.
        recipients = max(len(known.to), known.nrcpt - len(known.made) + len(known.aliased), 1)
        done.append(
            Mail(
                known.at,
                known.key,
                _text(known.user),
                _text(known.client),
                _text(known.sender),
                known.size,
                recipients,
                tuple(map(_text, known.to)),
            )
        )

    def _let_go(self, done: list[Mail]) -> None:
        """Of those that take the most room, the oldest."""
        while len(self._followed) > FOLLOWED * 7 // 8 or (self._recipients > RECIPIENTS * 7 // 8):
            key = next(iter(self._followed))
            self._end(self._followed.pop(key), done)


def _host(line: bytes, colon: int) -> bytes:
    """The host of a line: the word before the program's name."""
    return line[:colon].rsplit(b" ", 2)[-2] if line.count(b" ", 0, colon) > 1 else b""


def _key(line: bytes, colon: int, end: int) -> bytes:
    """Host and queue id."""
    return _host(line, colon) + b" " + line[colon + 3 : end]


def _process(line: bytes, colon: int) -> bytes:
    """Host, program and process id."""
    return b" ".join(line[:colon].rsplit(b" ", 2)[-2:])


def _text(value: bytes) -> str:
    """As the wire does it: octets that are no UTF-8 stand as ``\\xNN``."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("utf-8", "backslashreplace")
