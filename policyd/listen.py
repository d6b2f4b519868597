"""Listeners: from an address in the configuration to sessions.

``inet:`` and ``unix:`` addresses and sockets inherited from systemd are served by the loop's own servers. Twisted would
chmod an inherited UNIX socket to 0666 and unlink it when it stops (twisted issue 10261). Any other address is a Twisted
endpoint string.

A socket that systemd holds is taken over by its name (``systemd:NAME``) or by its address: the same configuration listens
with and without a socket unit. policyd leaves its file and its rights alone, and whoever connects during a restart waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from policyd.config import Listener
from policyd.descriptors import for_connections
from policyd.desk import Desk
from policyd.errors import UserError
from policyd.session import PolicyProtocol, Session, Transport

log = logging.getLogger("policyd.listen")

#: Connections that may wait to be accepted; Postfix reconnects with up to default_process_limit at once.
BACKLOG = 1024
#: Device, number and time of a socket's file.
_Identity = tuple[int, int, int]
#: The first descriptor that systemd hands over (sd_listen_fds(3)).
_FIRST_FD = 3


class Port(Protocol):
    """A listener that is open."""

    async def close(self) -> None:
        """Accept nothing more."""

    def vanished(self) -> bool:
        """Whether nobody can connect any more, because the socket's file is gone or is another one."""


class Listening:
    """Opens listeners and knows the sessions on all of them."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.sessions: set[Session] = set()
        self._most, self._bound = 10_000, ""
        #: By address: the listener and its port.
        self.ports: dict[str, tuple[Listener, Port]] = {}
        #: By address: why a listener whose socket was removed could not be opened anew; empty before it was tried.
        self._broken: dict[str, str] = {}
        self._refused = 0
        #: Never closed, so that a listener can be closed and opened again.
        self._inherited = _inherited_sockets()

    def hold(self, connections: int) -> None:
        """Hold so many connections at most, and no more than leave descriptors for all else.

        Without any left the loop would close new connections and say nothing, and the DNS and the logs would stand still.
        """
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        room = for_connections(files)
        self._most, self._bound = connections, "which is [server] max_connections"
        if files != resource.RLIM_INFINITY and room < connections:
            self._most = room
            self._bound = f"and policyd may open {files} files in all; raise LimitNOFILE in its unit"

    async def open(self, listener: Listener) -> None:
        """Open one listener.

        :raises UserError: it cannot be opened.
        """
        self.ports[listener.address] = (listener, await self._open(listener))

    async def _open(self, listener: Listener) -> Port:
        kind, _, rest = listener.address.partition(":")
        try:
            held = self._held(listener.address)
            if held is not None:
                return await self._serve(held.sock.dup(), listener, held.path, held.identity)
            if kind == "systemd":
                raise UserError(
                    f"systemd handed over no socket named {rest!r}; see FileDescriptorName= in policyd.socket (systemd.socket(5))"
                )
            if kind == "inet":
                return await self._serve(_inet_socket(rest), listener)
            if kind == "unix":
                return await self._serve(_unix_socket(rest, listener), listener, rest)
            return await self._endpoint(listener)
        except OSError as error:
            raise UserError(f"cannot listen on {listener.address}: {_why(error)}") from None

    async def close(self, address: str) -> None:
        """Close one listener; its sessions go on."""
        _, port = self.ports.pop(address)
        self._broken.pop(address, None)
        await port.close()

    async def mend(self) -> None:
        """Open those listeners anew whose socket was removed or replaced; one that cannot be opened is tried again next time."""
        for address, (listener, port) in list(self.ports.items()):
            if not port.vanished():
                continue
            if address not in self._broken:
                log.error(
                    "socket-gone: %s was removed or replaced while policyd listened on it; opening it anew",
                    address,
                )
                self._broken[address] = ""
                await port.close()
            try:
                mended = await self._open(listener)
            except UserError as error:
                if self._broken.get(address) != str(error):
                    log.error("socket-gone: %s; it is tried again until it can be opened", error)
                    self._broken[address] = str(error)
                continue
            if self.ports.get(address) != (listener, port):
                # A reload has closed it in the meantime.
                await mended.close()
                continue
            self.ports[address] = (listener, mended)
            del self._broken[address]
            log.warning("socket-back: %s is open again", address)

    def session(self, listener: Listener, transport: Transport, peer: Any) -> Session | None:
        """The session for a new connection; ``None`` when it is not let in."""
        address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        if listener.allow_from and address and address not in listener.allow_from:
            self._refuse(f"{address} is not in allow_from of {listener.label}")
            return None
        if len(self.sessions) >= self._most:
            self._refuse(f"{len(self.sessions)} connections are open, {self._bound}")
            return None
        return Session(self.desk, transport, listener.label, listener.direction, address or listener.label)

    def _refuse(self, why: str) -> None:
        self._refused += 1
        # The 1st, 2nd, 4th, 8th, ...: a flood of connections is not to become a flood of lines.
        if self._refused & (self._refused - 1) == 0:
            log.warning("connection refused: %s (%d so far)", why, self._refused)

    def _protocol(self, listener: Listener) -> Callable[[], PolicyProtocol]:
        return lambda: PolicyProtocol(
            lambda transport, peer: self.session(listener, transport, peer), self.sessions
        )

    async def _serve(
        self, sock: socket.socket, listener: Listener, path: str = "", held: _Identity | None = None
    ) -> Port:
        sock.setblocking(False)
        loop = self.desk.loop
        server: asyncio.AbstractServer
        if sock.family == socket.AF_UNIX:
            # From Python 3.13 on both loops would remove the file at the end, systemd's too.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            server = await loop.create_unix_server(
                self._protocol(listener), sock=sock, backlog=BACKLOG, **keep
            )
        else:
            server = await loop.create_server(self._protocol(listener), sock=sock, backlog=BACKLOG)
        return _LoopPort(server, path, held)

    def _held(self, address: str) -> _Held | None:
        """What systemd holds at ``address``, if clients can still find it."""
        for held in self._inherited:
            if address in (held.address, f"systemd:{held.name}"):
                if not held.path or (held.identity is not None and _identity(held.path) == held.identity):
                    held.used = True
                    return held
                if address != held.address:
                    raise UserError(
                        f"cannot listen on {address}: {held.path} was removed or replaced; systemctl restart policyd.socket"
                    )
        return None

    def unused(self) -> list[str]:
        """What systemd listens on for policyd and no listener serves: there Postfix waits in vain."""
        return [held.address or f"systemd:{held.name}" for held in self._inherited if not held.used]

    async def _endpoint(self, listener: Listener) -> Port:
        from policyd.twisted_listen import open_endpoint

        return await open_endpoint(self, listener)


class _LoopPort:
    """:class:`Port` of one of the loop's own servers.

    :param path: the file of a UNIX socket.
    :param held: what that file is if it is systemd's, which is not removed at the end.
    """

    def __init__(self, server: asyncio.AbstractServer, path: str, held: _Identity | None) -> None:
        self._server = server
        self._path = path
        self._ours = bool(path) and held is None
        self._identity = _identity(path) if held is None else held

    def vanished(self) -> bool:
        """See :class:`Port`."""
        return _identity(self._path) != self._identity

    async def close(self) -> None:
        """See :class:`Port`."""
        self._server.close()
        if self._ours:
            # Another policyd may have put its own socket there in the meantime.
            with contextlib.suppress(OSError):
                if not self.vanished():
                    os.unlink(self._path)


def _identity(path: str) -> _Identity | None:
    """What tells one socket's file from the next at the same place; ``None`` when there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    # The number of a file that was removed is soon given to another; rights and owner may be changed by the admin.
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _inet_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, int(port)))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _unix_socket(path: str, listener: Listener) -> socket.socket:
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The socket must not be open to others for even a moment.
    umask = os.umask(0o777 & ~listener.mode)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    try:
        os.chmod(path, listener.mode)
        if listener.group:
            try:
                os.chown(path, -1, grp.getgrnam(listener.group).gr_gid)
            except KeyError:
                raise UserError(
                    f"{listener.address}: there is no group {listener.group!r}; correct group of this listener"
                ) from None
        sock.listen(BACKLOG)
    except (OSError, UserError):
        sock.close()
        os.unlink(path)
        raise
    return sock


def _clear_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; whatever else is there is not ours to remove."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UserError(f"cannot listen on unix:{path}: there is a file of that name that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # With its queue full the other one is there too, and nothing here may wait.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise UserError(f"cannot listen on unix:{path}: another program listens there; stop it first")


@dataclass
class _Held:
    """A socket that systemd listens on: as FileDescriptorName= calls it, and as a listener would."""

    name: str
    address: str
    sock: socket.socket
    #: The file of a UNIX socket, and what it was at the start.
    path: str = ""
    identity: _Identity | None = None
    #: Whether a listener has ever served it.
    used: bool = False


def _inherited_sockets() -> list[_Held]:
    """The sockets that systemd handed over, with their names (sd_listen_fds_with_names(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for at in range(int(count) if count.isdigit() else 0):
        os.set_inheritable(_FIRST_FD + at, False)
        sock = socket.socket(fileno=_FIRST_FD + at)
        address = _address_of(sock)
        path = address.removeprefix("unix:") if sock.family == socket.AF_UNIX else ""
        found.append(_Held(names[at] if at < len(names) else "", address, sock, path, _identity(path)))
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    return found


def _address_of(sock: socket.socket) -> str:
    """The address of an open socket as a listener has it; empty for a kind that none can have."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}" if isinstance(name, str) and name else ""
    if sock.family == socket.AF_INET6:
        return f"inet:[{name[0]}]:{name[1]}"
    return f"inet:{name[0]}:{name[1]}" if sock.family == socket.AF_INET else ""


def _why(error: OSError) -> str:
    remedy = {
        errno.EADDRINUSE: "; another program listens there (ss -ltnp shows which)",
        errno.EACCES: "; policyd's user may not do that: check the directory's rights, or the port number",
        errno.EADDRNOTAVAIL: "; this machine has no such address",
        errno.ENOENT: "; the directory does not exist: make it, owned by policyd's user",
    }
    return f"{error.strerror or error}{remedy.get(error.errno or 0, '')}"
