"""Signals: SIGHUP changes the policy and loses nothing, SIGUSR1 loses no line, SIGTERM finishes what was begun."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.asking import ALICE, Asker, ask_all, in_parallel, new_instance, policy, request
from tests.system.daemon import Policyd
from tests.system.test_kill9 import Customer
from tests.system.waiting import wait_for


def test_changed_limits_keep_counts_and_connections(tmp_path: Path) -> None:
    """Another limit, another window and another check hold from the next request of an open connection on, and what was
    counted before counts."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["5 messages per 1d"])) as policyd, Asker(address) as asker:
        assert [asker.ask()[:3] for _ in range(6)] == ["DUN"] * 5 + ["450"]
        policyd.reload(policy(address, limits=["8 messages per 1d"]))
        assert [asker.ask()[:3] for _ in range(4)] == ["DUN"] * 3 + ["450"]
        assert policyd.used(ALICE, "messages") == 8
        # A window that was never asked for takes over what finer or coarser cells know.
        policyd.reload(policy(address, limits=["9 messages per 7d", "1000 recipients per 1d"]))
        assert [asker.ask()[:3] for _ in range(2)] == ["DUN", "450"]
        policyd.reload(policy(address))
        assert asker.ask() == "DUNNO"


def test_a_bad_file_is_refused_whole(tmp_path: Path) -> None:
    """Every problem is named with its line, and the old policy stays in force: limits, listeners, everything."""
    address, other = f"unix:{tmp_path}/sock", f"unix:{tmp_path}/other"
    good = policy(address, limits=["5 messages per 1d"])
    with Policyd(tmp_path, good) as policyd, Asker(address) as asker:
        assert [asker.ask()[:3] for _ in range(4)] == ["DUN"] * 4
        bad = policy(address, other, limits=["50 messages per 1d"], server="deadline = 'soon'\nlisten_to = 1")
        policyd.configure(bad + "[[check]]\nuse = 'quotta'\n")
        policyd.reload(refused=True)
        told = policyd.told()
        for problem in ("deadline", "listen_to", "quotta"):
            assert any(f"{policyd.config}:" in line and problem in line for line in told.splitlines()), (
                problem
            )
        assert not (tmp_path / "other").exists()
        assert [asker.ask()[:3] for _ in range(2)] == ["DUN", "450"]
        # What reads well and cannot be had is refused as well.
        policyd.configure(policy(address, f"unix:{tmp_path}/none/sock", limits=["50 messages per 1d"]))
        policyd.reload(refused=True)
        assert asker.ask()[:3] == "450"
        policyd.reload(good.replace("5 messages", "6 messages"))
        assert [asker.ask()[:3] for _ in range(2)] == ["DUN", "450"]


def test_a_pipe_in_the_place_of_the_file_stops_no_mail(tmp_path: Path) -> None:
    """Whoever opens one waits for the other end for ever: policyd does not, and keeps its policy."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["5 messages per 1d"])) as policyd, Asker(address) as asker:
        policyd.config.unlink()
        os.mkfifo(policyd.config)
        policyd.reload(refused=True)
        assert "is a pipe or a device; name a file with --config" in policyd.told()
        assert asker.ask() == "DUNNO"


def test_a_reload_that_is_asked_for_during_another_is_done(tmp_path: Path) -> None:
    """Who changes the file twice has the second change, whatever the first reload is about; and mail goes on meanwhile."""
    address = f"unix:{tmp_path}/sock"
    small = policy(address, limits=["1 messages per 1d"])
    with Policyd(tmp_path, small) as policyd, Asker(address) as asker:
        assert [asker.ask()[:3] for _ in range(2)] == ["DUN", "450"]
        policyd.configure(small + "# a large file takes its time\n" * 20_000)
        policyd.signal(signal.SIGHUP)
        assert asker.ask()[:3] == "450"
        policyd.configure(policy(address, limits=["100 messages per 1d"]))
        policyd.signal(signal.SIGHUP)
        wait_for(lambda: asker.ask() == "DUNNO", policyd.told)


@pytest.mark.parametrize("kind", ["inet", "twisted"])
def test_listeners_come_and_go(tmp_path: Path, kind: str) -> None:
    """A listener that is new opens, one that is gone closes; sessions on it go on."""
    port, address = free_port(), f"unix:{tmp_path}/sock"
    second = f"inet:127.0.0.1:{port}" if kind == "inet" else f"tcp:{port}:interface=127.0.0.1"
    with Policyd(tmp_path, policy(address)) as policyd, Asker(address) as first:
        policyd.reload(policy(address, second))
        with Asker(f"inet:127.0.0.1:{port}") as asker:
            assert asker.ask() == "DUNNO"
            policyd.reload(policy(second))
            assert first.ask() == "DUNNO"
            assert asker.ask() == "DUNNO"
            assert not (tmp_path / "sock").exists()
            policyd.reload(policy(address))
            assert asker.ask() == "DUNNO"
            with pytest.raises(ConnectionRefusedError):
                Asker(f"inet:127.0.0.1:{port}")
            with Asker(address) as again:
                assert again.ask() == "DUNNO"


def test_reloads_under_load(tmp_path: Path) -> None:
    """20 reloads, half of them of a bad file, while 20 connections ask: no connection ends, no request is lost."""
    address = f"unix:{tmp_path}/sock"
    good = policy(address, limits=["100000 messages per 1d"])
    with Policyd(tmp_path, good) as policyd:
        stop = threading.Event()
        sent = [0] * 20

        def send(number: int) -> None:
            with Asker(address) as asker:
                while not stop.is_set():
                    assert asker.ask() == "DUNNO"
                    sent[number] += 1

        def reload() -> None:
            try:
                for number in range(20):
                    had = sum(sent)
                    if number % 2:
                        policyd.reload(good + "nonsense = 1\n", refused=True)
                    else:
                        policyd.reload(good.replace("100000", f"{100001 + number}"))
                    wait_for(lambda had=had: sum(sent) > had, policyd.told)  # type: ignore[misc]
            finally:
                stop.set()

        in_parallel([reload, *[lambda number=number: send(number) for number in range(20)]])  # type: ignore[misc]
        policyd.reload(good)
        assert policyd.used(ALICE, "messages") == sum(sent)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_log_rotation_loses_no_line(tmp_path: Path, number: signal.Signals) -> None:
    """logrotate renames the file, then signals: each decision stands once, in one of the files, however often."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["100000 messages per 1d"])) as policyd:
        stop = threading.Event()

        def send() -> None:
            with Asker(address) as asker:
                while not stop.is_set():
                    assert asker.ask() == "DUNNO"

        def rotate() -> None:
            try:
                for turn in range(5):
                    policyd.decisions.rename(tmp_path / f"decisions.log.{turn}")
                    policyd.signal(number)
                    wait_for(
                        lambda: policyd.decisions.exists() and policyd.decisions.stat().st_size > 1000,
                        policyd.told,
                    )
            finally:
                stop.set()

        wait_for(policyd.decisions.exists, policyd.told)
        in_parallel([rotate, send, send, send])
        rows = {row[0] for row in policyd.query("SELECT id FROM decision")}
        policyd.stop()
        lines = [
            int(line.split(" ", 2)[1].removeprefix("id="))
            for file in tmp_path.glob("decisions.log*")
            for line in file.read_text().splitlines()
        ]
        assert len(list(tmp_path.glob("decisions.log*"))) == 6
        assert len(lines) == len(set(lines))
        assert set(lines) == rows
        policyd.start()


def test_a_removed_decision_log_is_begun_anew_without_a_signal(tmp_path: Path) -> None:
    """Somebody's rm, or a rotation without its signal: within seconds a new file takes the decisions."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address)) as policyd, Asker(address) as asker:
        asker.ask()
        wait_for(lambda: policyd.decisions.read_text().count("\n") == 1, policyd.told)
        policyd.decisions.unlink()
        wait_for(policyd.decisions.exists, policyd.told)
        asker.ask()
        wait_for(lambda: policyd.decisions.read_text().count("\n") == 1, policyd.told)
        assert policyd.told().count("was removed or renamed; a new one is begun") == 1


def test_a_decision_log_that_takes_nothing_delays_no_answer(tmp_path: Path) -> None:
    """A FIFO whose reader has stopped: answers, reload and rotation go on; it gets every line once when it reads again; and
    SIGTERM ends policyd though it does not read."""
    address = f"unix:{tmp_path}/sock"
    good = policy(address, limits=["100000 messages per 1d"])
    policyd = Policyd(tmp_path, good)
    os.mkfifo(policyd.decisions)
    reader = os.open(policyd.decisions, os.O_RDONLY | os.O_NONBLOCK)
    text = b""

    def read() -> list[int]:
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reader, 65536):
                text += data
        return [
            int(line.split(b" ", 2)[1].removeprefix(b"id="))
            for line in text.splitlines(True)
            if line[-1:] == b"\n"
        ]

    try:
        with policyd:
            assert set(ask_all(address, [request() for _ in range(2000)], 10)) == {"DUNNO"}
            policyd.signal(signal.SIGUSR1)
            policyd.reload(good.replace("100000", "100001"))
            with Asker(address) as asker:
                assert asker.ask() == "DUNNO"
            wait_for(lambda: len(read()) == 2001, policyd.told)
            assert sorted(read()) == list(range(1, 2002))
            assert set(ask_all(address, [request() for _ in range(2000)], 10)) == {"DUNNO"}
        policyd.wait_told("lines are not written; the decisions are in the database")
        assert policyd.query("SELECT count(*) FROM decision") == [(4001,)]
    finally:
        os.close(reader)


def test_a_reload_takes_the_decision_log_elsewhere(tmp_path: Path) -> None:
    """Away from a FIFO that nobody reads: the new file has what comes from now on at once, SIGUSR1 is about the new file, and
    the FIFO still gets its own lines when it is read, at the latest at the end."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address, limits=["100000 messages per 1d"]))
    os.mkfifo(policyd.decisions)
    reader = os.open(policyd.decisions, os.O_RDONLY | os.O_NONBLOCK)
    text = b""
    try:
        with policyd:
            ask_all(address, [request() for _ in range(1000)], 10)
            policyd.decisions = tmp_path / "other.log"
            policyd.reload(policy(address, limits=["100000 messages per 1d"]))
            ask_all(address, [request() for _ in range(10)], 2)
            wait_for(lambda: len(policyd.decisions.read_text().splitlines()) == 10, policyd.told)
            policyd.decisions.rename(tmp_path / "other.log.1")
            policyd.signal(signal.SIGUSR1)
            wait_for(policyd.decisions.exists, policyd.told)
            ask_all(address, [request()], 1)

            def read() -> int:
                nonlocal text
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(reader, 65536):
                        text += data
                return text.count(b"\n")

            wait_for(lambda: read() == 1000, policyd.told)
    finally:
        os.close(reader)
    text += (tmp_path / "other.log.1").read_bytes() + policyd.decisions.read_bytes()
    assert [int(line.split(b" ", 2)[1].removeprefix(b"id=")) for line in text.splitlines()] == list(
        range(1, 1012)
    )


def test_sigterm_under_load(tmp_path: Path) -> None:
    """Ended five times under load: exit code 0 each time, every request answered or its connection closed, the counts those
    of the answers, and nothing left to recover."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address, limits=["1000000 messages per 1d"]))
    with policyd:
        customers = [Customer(address, number) for number in range(20)]
        stop = threading.Event()

        def end() -> None:
            try:
                for _ in range(5):
                    had = sum(len(one.acknowledged) for one in customers)
                    wait_for(
                        lambda had=had: sum(len(one.acknowledged) for one in customers) > had + 200,  # type: ignore[misc]
                        policyd.told,
                    )
                    policyd.stop()
                    assert not Path(f"{policyd.database}-wal").exists()
                    assert policyd.told().splitlines()[-1] == "INFO policyd: policyd ended"
                    known = {row[0] for row in policyd.query("SELECT instance FROM decision")}
                    assert {each for one in customers for each in one.acknowledged} <= known
                    policyd.start()
            finally:
                stop.set()

        in_parallel([end, *[lambda one=one: one.send_until(stop) for one in customers]])  # type: ignore[misc]
        for user in sorted({one.user for one in customers}):
            assert policyd.used(user, "messages") == sum(
                len(one.acknowledged) for one in customers if one.user == user
            )
        assert "Traceback" not in policyd.told()


def test_sigterm_answers_what_was_asked(tmp_path: Path) -> None:
    """A request that policyd has read is answered before it ends, and is in the database."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address, limits=["1000000 messages per 1d"]))
    with policyd:
        askers = [Asker(address) for _ in range(50)]
        for asker in askers:
            asker.ask()
        instances = [new_instance() for _ in askers]
        for asker, instance in zip(askers, instances, strict=True):
            asker.send(request(instance=instance))
        policyd.stop()
        answered = []
        for asker, instance in zip(askers, instances, strict=True):
            try:
                assert asker.answer() == "DUNNO"
                answered.append(instance)
            except EOFError as end:
                assert end.args == (b"",)  # noqa: PT017  # never half an answer
            asker.sock.close()
        rows = {row[0] for row in policyd.query("SELECT instance FROM decision")} & set(instances)
        assert set(answered) == rows, "decided and not told, or told and not written"


def test_counts_survive_a_restart(tmp_path: Path) -> None:
    """What was counted before counts after it, and a request that was answered before is known again."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address, limits=["10 messages per 1d"]))
    requests = [request() for _ in range(10)]
    with policyd:
        assert set(ask_all(address, requests, 3)) == {"DUNNO"}
    with policyd:
        assert set(ask_all(address, requests, 3)) == {"DUNNO"}
        with Asker(address) as asker:
            assert asker.ask().startswith("450 ")
        assert policyd.used(ALICE, "messages") == 10
