"""One answer a request, in order, however the bytes come and wherever policyd listens."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from policyd import session as session_module
from policyd.answer import DUNNO
from policyd.config import Listener
from policyd.session import Session
from policyd.twisted_listen import TwistedPolicy
from tests.ports import free_port
from tests.system.asking import END, RCPT, Asker, connect, in_parallel, new_instance, policy, request
from tests.system.daemon import Policyd
from tests.system.every_third import echo
from tests.system.waiting import PATIENCE, wait_for

ECHO = "[[check]]\nuse = 'tests.system.every_third'\nname = 'echo'\nevery = 0\necho = 1\n"
#: Hands its descriptor 3 over as systemd does, under the name that is its argument, and becomes the daemon.
HAND_OVER = (
    "import os, sys; os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES=sys.argv[2], LISTEN_PID=str(os.getpid())); "
    "fd = int(sys.argv[1]); os.dup2(fd, 3); os.set_inheritable(3, True); os.execv(sys.argv[3], sys.argv[3:])"
)


@pytest.fixture(scope="module", params=["loop", "twisted"])
def echoing(tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[tuple[str, Policyd]]:
    """A daemon whose answers tell which request they are for; once on the loop's own transport, once on Twisted's."""
    directory = tmp_path_factory.mktemp("echo")
    address, listen = f"unix:{directory}/sock", f"unix:{directory}/sock"
    if request.param == "twisted":
        port = free_port()
        address, listen = f"inet:127.0.0.1:{port}", f"tcp:{port}:interface=127.0.0.1:backlog=1024"
    with Policyd(directory, policy(listen, limits=["1000000 messages per 1d"], checks=ECHO)) as policyd:
        yield address, policyd


def test_byte_by_byte(echoing: tuple[str, Policyd]) -> None:
    """A request that comes one octet at a time is answered like a whole one."""
    instance = new_instance()
    with Asker(echoing[0]) as asker:
        for octet in request(instance=instance, sender="j\u00fcrgen@example.org"):
            asker.send(bytes([octet]))
        assert asker.answer() == f"HOLD {echo(instance)}"


def test_cut_anywhere(echoing: tuple[str, Policyd]) -> None:
    """Each point at which the bytes can be cut in two gives the same answer."""
    with Asker(echoing[0]) as asker:
        for cut in range(1, len(request(instance=new_instance(), sender="j\u00fcrgen@example.org")) - 1):
            instance = new_instance()
            whole = request(instance=instance, sender="j\u00fcrgen@example.org")
            asker.send(whole[:cut])
            asker.send(whole[cut:])
            assert asker.answer() == f"HOLD {echo(instance)}"


def test_pipelined(echoing: tuple[str, Policyd]) -> None:
    """300 requests in one write get 300 answers, in the order of the requests."""
    instances = [new_instance() for _ in range(300)]
    with Asker(echoing[0]) as asker:
        asker.send(b"".join(request(instance=each) for each in instances))
        assert [asker.answer() for _ in instances] == [f"HOLD {echo(each)}" for each in instances]


def test_half_close(echoing: tuple[str, Policyd]) -> None:
    """Who says that nothing more will come still gets the answers to what was asked, then the end."""
    instances = [new_instance() for _ in range(3)]
    with Asker(echoing[0]) as asker:
        asker.send(b"".join(request(instance=each) for each in instances))
        asker.sock.shutdown(socket.SHUT_WR)
        assert [asker.answer() for _ in instances] == [f"HOLD {echo(each)}" for each in instances]
        assert asker.at_end()


def test_half_a_request_then_the_end(echoing: tuple[str, Policyd]) -> None:
    """Half a request is never answered."""
    with Asker(echoing[0]) as asker:
        asker.send(request()[:-1])
        asker.sock.shutdown(socket.SHUT_WR)
        assert asker.at_end()


def test_garbage_after_requests(echoing: tuple[str, Policyd]) -> None:
    """What came before the garbage is answered, the garbage is not: policyd disconnects and says so once."""
    before = echoing[1].told().count("no policy request")
    instances = [new_instance() for _ in range(3)]
    with Asker(echoing[0]) as asker:
        asker.send(
            b"".join(request(instance=each) for each in instances) + b"GET / HTTP/1.1\r\n\n\n" + request()
        )
        assert [asker.answer() for _ in instances] == [f"HOLD {echo(each)}" for each in instances]
        assert asker.at_end()
    echoing[1].wait_told("no policy request", before + 1)
    assert echoing[1].told().count("no policy request") == before + 1


def test_a_peer_that_reads_nothing(tmp_path: Path) -> None:
    """Who asks and does not read stops being heard, is not forgotten, and holds up nobody else."""
    address = f"unix:{tmp_path}/sock"
    checks = ECHO.replace("echo = 1", "echo = 380")
    # Large requests and small answers: few decisions fill what the kernel holds of either.
    filling = {f"filling{number}": "x" * 7000 for number in range(1)}
    requests = 4_000
    stream = b"".join(request(stage=RCPT, instance=f"i{number:05}", **filling) for number in range(requests))
    length = len(stream) // requests
    with (
        Policyd(tmp_path, policy(address, checks=checks)) as policyd,
        Asker(address, receive_buffer=4096) as deaf,
        Asker(address) as other,
    ):
        deaf.sock.settimeout(0.2)
        sent = 0
        while sent < len(stream):
            try:
                sent += deaf.sock.send(memoryview(stream)[sent : sent + 100_000])
            except TimeoutError:
                # A machine that is busy is none that has stopped reading.
                before = policyd.query("SELECT max(id) + 1 FROM decision")
                assert other.ask().startswith("HOLD ")
                if policyd.query("SELECT max(id) FROM decision") == before:
                    break
        assert sent < len(stream), "policyd takes without end from who does not read"
        deaf.sock.settimeout(PATIENCE)
        rest = -sent % length

        def read() -> None:
            for number in range((sent + rest) // length):
                assert deaf.answer() == f"HOLD {echo(f'i{number:05}', 380)}"

        in_parallel([read, lambda: deaf.send(stream[sent : sent + rest])])


def test_a_thousand_connections(echoing: tuple[str, Policyd]) -> None:
    """1,000 connections are held and each is answered; none of them is closed by policyd, idle or not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    askers: list[Asker] = []
    try:
        for _ in range(1000):
            askers.append(Asker(echoing[0]))
        for _ in range(2):
            for asker in askers:
                instance = asker.instance = new_instance()  # type: ignore[attr-defined]
                asker.send(request(instance=instance))
            for asker in askers:
                assert asker.answer() == f"HOLD {echo(asker.instance)}"  # type: ignore[attr-defined]
    finally:
        for asker in askers:
            asker.sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_listeners_of_every_kind(tmp_path: Path) -> None:
    """IPv4, IPv6, UNIX and Twisted's endpoint strings side by side; label and direction are those of the listener."""
    inet, inet6, endpoint = free_port(), free_port("::1"), free_port()
    listen = [
        f"{{ address = 'inet:127.0.0.1:{inet}', label = 'four', for = 'submission' }}",
        f"{{ address = 'inet:[::1]:{inet6}', label = 'six', for = 'mx' }}",
        f"{{ address = 'unix:{tmp_path}/sock', label = 'local', mode = '0600' }}",
        f"{{ address = 'tcp:{endpoint}:interface=127.0.0.1', label = 'twisted', for = 'submission' }}",
    ]
    with Policyd(tmp_path, policy(*listen, limits=["100 messages per 1d"])) as policyd:
        for address in (
            f"inet:127.0.0.1:{inet}",
            f"inet:[::1]:{inet6}",
            f"unix:{tmp_path}/sock",
            f"inet:127.0.0.1:{endpoint}",
        ):
            with Asker(address) as asker:
                asker.send(request(user="") + request(user=""))
                assert [asker.answer(), asker.answer()] == ["DUNNO", "DUNNO"]
        assert policyd.query("SELECT listener, direction, count(*) FROM decision GROUP BY 1 ORDER BY 1") == [
            ("four", "submission", 2),
            ("local", "mx", 2),
            ("six", "mx", 2),
            ("twisted", "submission", 2),
        ]
        assert stat.S_IMODE(os.stat(tmp_path / "sock").st_mode) == 0o600
    assert not (tmp_path / "sock").exists()


def test_the_same_instance_on_two_listeners(tmp_path: Path) -> None:
    """Two Postfix instances may give the same instance to different mails: each listener counts for itself."""
    addresses = [f"unix:{tmp_path}/one", f"unix:{tmp_path}/two"]
    with Policyd(tmp_path, policy(*addresses, limits=["100 messages per 1d"])) as policyd:
        instance = new_instance()
        for address in [*addresses, *addresses]:
            with Asker(address) as asker:
                assert asker.ask(instance=instance) == "DUNNO"
        assert policyd.used("alice@example.org", "messages") == 2


@pytest.mark.parametrize("kind", ["inet", "tcp"])
def test_allow_from(tmp_path: Path, kind: str) -> None:
    """Who is not in allow_from is disconnected without an answer; the same for the loop's and for Twisted's listeners."""
    ports = free_port(), free_port()
    shut, opened = (
        f"inet:127.0.0.1:{port}" if kind == "inet" else f"tcp:{port}:interface=127.0.0.1" for port in ports
    )
    listen = [
        f"{{ address = '{shut}', label = 'shut', allow_from = ['192.0.2.0/24'] }}",
        f"{{ address = '{opened}', label = 'open', allow_from = ['127.0.0.0/8'] }}",
    ]
    with Policyd(tmp_path, policy(*listen)) as policyd:
        with Asker(f"inet:127.0.0.1:{ports[0]}") as asker:
            assert asker.at_end()
        with Asker(f"inet:127.0.0.1:{ports[1]}") as asker:
            assert asker.ask() == "DUNNO"
        policyd.wait_told("127.0.0.1 is not in allow_from of shut")
        assert policyd.query("SELECT listener FROM decision") == [("open",)]


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_socket_inherited_from_systemd(tmp_path: Path, family: socket.AddressFamily) -> None:
    """policyd answers on the socket that it was handed over, leaves its mode alone and leaves it there when it ends,
    so that who connects in between waits instead of failing."""
    path = tmp_path / "sock"
    with socket.socket(family) as inherited:
        if family == socket.AF_UNIX:
            inherited.bind(str(path))
            path.chmod(0o620)
            address = f"unix:{path}"
        else:
            inherited.bind(("127.0.0.1", 0))
            address = f"inet:127.0.0.1:{inherited.getsockname()[1]}"
        inherited.listen(100)
        fd = inherited.fileno()
        policyd = Policyd(
            tmp_path,
            policy("{ address = 'systemd:policy', label = 'inherited' }"),
            wrapper=[sys.executable, "-c", HAND_OVER, str(fd), "policy"],
            pass_fds=[fd],
        )
        with policyd:
            with Asker(address) as asker:
                assert asker.ask() == "DUNNO"
                policyd.reload()
                assert asker.ask() == "DUNNO"
            with Asker(address) as asker:
                assert asker.ask() == "DUNNO"
        # It has ended; the socket still takes connections, and the next daemon answers them.
        with Asker(address) as waiting:
            waiting.send(request())
            with policyd:
                assert waiting.answer() == "DUNNO"
                assert policyd.query("SELECT DISTINCT listener FROM decision") == [("inherited",)]
        if family == socket.AF_UNIX:
            assert stat.S_IMODE(path.stat().st_mode) == 0o620


def test_a_held_socket_is_found_by_its_address(tmp_path: Path) -> None:
    """The same configuration with and without a socket unit; a reload that leaves it out and names it again serves it
    again; and one that no listener names is told, for there Postfix would wait in vain."""
    path = tmp_path / "sock"
    address, other = f"unix:{path}", f"unix:{tmp_path}/other"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen(100)
        policyd = Policyd(
            tmp_path,
            policy(address),
            wrapper=[sys.executable, "-c", HAND_OVER, str(held.fileno()), "policyd.socket"],
            pass_fds=[held.fileno()],
        )
        with policyd:
            policyd.reload(policy(other))
            assert path.exists()
            with Asker(address) as waiting:
                waiting.send(request())
                policyd.reload(policy(address))
                assert waiting.answer() == "DUNNO"
            assert policyd.ctl("ask", "user=alice@example.org").startswith("action=DUNNO")
        assert path.exists()
        assert "systemd listens" not in policyd.told()
        policyd.configure(policy(other))
        with policyd:
            assert (
                f"systemd listens on {address} for policyd, and [server] listen does not name it"
                in policyd.told()
            )
    # Without systemd policyd opens it itself, once nobody listens there.
    policyd = Policyd(tmp_path, policy(address))
    with policyd, Asker(address) as asker:
        assert asker.ask() == "DUNNO"


def test_a_held_socket_whose_file_is_gone_is_opened_anew(tmp_path: Path) -> None:
    """Somebody's rm: policyd puts its own there, in the same place."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen(100)
        policyd = Policyd(
            tmp_path,
            policy(f"unix:{path}"),
            wrapper=[sys.executable, "-c", HAND_OVER, str(held.fileno()), "policyd.socket"],
            pass_fds=[held.fileno()],
        )
        with policyd:
            path.unlink()
            policyd.wait_told("socket-back: ")
            with Asker(f"unix:{path}") as asker:
                assert asker.ask() == "DUNNO"
        # Removed by policyd as its own; the next one finds none, and makes one.
        assert not path.exists()
        with policyd, Asker(f"unix:{path}") as asker:
            assert asker.ask() == "DUNNO"


def test_a_socket_that_systemd_did_not_hand_over(tmp_path: Path) -> None:
    """One clear line, and nothing is served."""
    done = Policyd(tmp_path, policy("systemd:policy")).try_start()
    assert done.returncode == 1
    assert "systemd handed over no socket named 'policy'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """After kill -9 the socket file is in the way and goes; a socket that somebody listens on stays theirs."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address))
    policyd.start()
    policyd.kill()
    assert (tmp_path / "sock").exists()
    with policyd:
        (tmp_path / "other").mkdir()
        done = Policyd(tmp_path / "other", policy(address)).try_start()
        assert done.returncode == 1
        assert "another program listens there" in done.stderr
        with Asker(address) as asker:
            assert asker.ask() == "DUNNO"


def test_connections_beyond_the_bound_are_closed(tmp_path: Path) -> None:
    """max_connections are held; one more is closed at once, and the others go on."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, server="max_connections = 3")) as policyd:
        askers = [Asker(address) for _ in range(3)]
        assert [asker.ask() for asker in askers] == ["DUNNO"] * 3
        with Asker(address) as fourth:
            assert fourth.at_end()
        assert [asker.ask() for asker in askers] == ["DUNNO"] * 3
        askers.pop().sock.close()

        def admitted() -> bool:
            # Who is turned away may find the connection closed before it has asked.
            with contextlib.suppress(ConnectionError), connect(address) as sock:
                sock.sendall(request(stage=END))
                return sock.recv(100).startswith(b"action=")
            return False

        wait_for(admitted, policyd.told)
        for asker in askers:
            asker.sock.close()


def test_connections_leave_descriptors_for_all_else(tmp_path: Path) -> None:
    """Where few files may be open, one connection too many is closed and told, and the others go on, with their log."""
    address = f"unix:{tmp_path}/sock"
    few = ["prlimit", "--nofile=64:64", "--"]
    with Policyd(tmp_path, policy(address), wrapper=few) as policyd:
        askers = [Asker(address) for _ in range(16)]
        assert [asker.ask() for asker in askers] == ["DUNNO"] * 16
        with Asker(address) as another:
            assert another.at_end()
        policyd.wait_told(
            r"connection refused: 16 connections are open, and policyd may open 64 files in all"
        )
        assert [asker.ask() for asker in askers] == ["DUNNO"] * 16
        wait_for(lambda: policyd.decisions.read_text().count("\n") == 32, policyd.decisions.read_text)
        for asker in askers:
            asker.sock.close()


def test_twisted_says_when_a_peer_reads_nothing() -> None:
    """A session on Twisted's transport takes no request up while the peer takes no answers, and goes on afterwards."""
    taken: list[str] = []

    class Desk:
        def ready(self, session: Session) -> None:
            asked = session.next_request()
            if asked is not None:
                taken.append(asked.attributes.instance)
                asked.reply(DUNNO)

    def session(listener: Any, transport: Any, peer: Any) -> Session:
        return Session(desk, transport, "label", "", "peer")

    desk: Any = Desk()
    listening: Any = SimpleNamespace(session=session, sessions=set())
    transport = StringTransport()
    connection = TwistedPolicy(listening, Listener("tcp:10047"))
    connection.makeConnection(transport)
    assert transport.producer is connection
    connection.pauseProducing()
    connection.dataReceived(request(instance="1") + request(instance="2"))
    assert (taken, transport.value()) == ([], b"")
    connection.resumeProducing()
    assert (taken, transport.value()) == (["1", "2"], b"action=DUNNO\n\n" * 2)
    connection.readConnectionLost()
    assert transport.disconnecting
    # Twisted waits for a producer, so a connection that is closed must have none.
    assert transport.producer is None


class _Transport:
    """Notes what a session does."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        raise AssertionError(data)

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def test_time_limits_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request is cut 30 s after its first octet, however slowly more drips in; an idle connection is kept for at
    least 1200 s, which is longer than Postfix does. (On a clock of its own: nobody waits for it.)"""
    now = 1000.0
    monkeypatch.setattr(session_module, "time", SimpleNamespace(monotonic=lambda: now))
    nothing: Any = SimpleNamespace(ready=lambda session: session.next_request())

    dripping, idle = _Transport(), _Transport()
    slow = Session(nothing, dripping, "label", "", "peer")
    Session(nothing, idle, "label", "", "peer").check_time(1000.0 + 1200.0)
    assert not idle.closed
    now = 5000.0  # idle until now, which is no reason to cut what begins now
    for octet in request()[:29]:
        slow.data_received(bytes([octet]))
        slow.check_time(now)
        assert not dripping.closed
        now += 1.0
    slow.check_time(5000.0 + 30.5)
    assert dripping.closed
