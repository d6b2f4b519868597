"""kill -9 at random moments under load: what was acknowledged is there, nothing is there twice, and it answers again soon.

``POLICYD_ROUNDS=100`` makes the full form of it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

from tests.system.asking import Asker, in_parallel, new_instance, policy, request
from tests.system.daemon import Policyd
from tests.system.waiting import PATIENCE, wait_for

ROUNDS = int(os.environ.get("POLICYD_ROUNDS", "12"))
CONNECTIONS = 50
#: Seconds from the start of the process to the first answer.
SOON = 2.0


class Customer:
    """A user who sends one message after the other, and asks again, as Postfix does, until there is an answer."""

    def __init__(self, address: str, number: int) -> None:
        self.address = address
        self.user = f"user{number % 10}@example.org"
        #: Instances whose request was answered.
        self.acknowledged: list[str] = []
        #: How often a request was asked again.
        self.again = 0

    def send_until(self, stop: threading.Event) -> None:
        """Send; the message in hand is brought to its end."""
        asker: Asker | None = None
        while not stop.is_set():
            instance = new_instance()
            give_up = time.monotonic() + PATIENCE
            while True:
                try:
                    if asker is None:
                        asker = Asker(self.address)
                    answer = asker.ask(user=self.user, instance=instance)
                    break
                except (OSError, EOFError):
                    if time.monotonic() > give_up:
                        raise
                    if asker is not None:
                        self.again += 1
                        asker.sock.close()
                        asker = None
                    stop.wait(0.1)  # Postfix waits for 1 s
            assert answer == "DUNNO"
            self.acknowledged.append(instance)
        if asker is not None:
            asker.sock.close()


def test_kill_9_under_load(tmp_path: Path) -> None:
    """After each kill -9: the database is sound, every acknowledged message is in it, and policyd answers within 2 s.
    In the end each account's count is the number of its messages, though many were asked about again."""
    address = f"unix:{tmp_path}/sock"
    chance = random.Random(ROUNDS)
    with Policyd(tmp_path, policy(address, limits=["100000000 messages per 1d"])) as policyd:
        customers = [Customer(address, number) for number in range(CONNECTIONS)]
        stop = threading.Event()
        failures: list[BaseException] = []

        def load() -> None:
            try:
                in_parallel([lambda one=one: one.send_until(stop) for one in customers])  # type: ignore[misc]
            except BaseException as failure:  # noqa: BLE001  # raised below
                failures.append(failure)

        loader = threading.Thread(target=load, daemon=True)
        loader.start()
        times: list[float] = []
        try:
            for _ in range(ROUNDS):
                had = sum(len(one.acknowledged) for one in customers)
                wanted = had + chance.randrange(1, 600)
                wait_for(
                    lambda: failures or sum(len(one.acknowledged) for one in customers) >= wanted,  # noqa: B023
                    policyd.told,
                )
                policyd.kill()
                before = [list(one.acknowledged) for one in customers]
                begun = time.monotonic()
                policyd.start(wait=False)
                times.append(_first_answer(address) - begun)
                assert policyd.query("PRAGMA integrity_check") == [("ok",)]
                known = {row[0] for row in policyd.query("SELECT instance FROM decision")}
                lost = [each for of_one in before for each in of_one if each not in known]
                assert not lost, f"{len(lost)} acknowledged decisions lost"
                assert not failures, failures
        finally:
            stop.set()
            loader.join()
        assert not failures, failures
        with_answers = sum(len(one.acknowledged) for one in customers)
        repeats = policyd.query("SELECT count(*) FROM decision WHERE mark = 'repeat'")[0][0]
        for user in sorted({one.user for one in customers}):
            sent = sum(len(one.acknowledged) for one in customers if one.user == user)
            assert policyd.used(user, "messages") == sent
        times.sort()
        print(
            f"{ROUNDS} times kill -9, {CONNECTIONS} connections: {with_answers} messages acknowledged, "
            f"{sum(one.again for one in customers)} times asked again, {repeats} of them were counted already; "
            f"answering again: median {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s, "
            f"{sum(each > SOON for each in times)} times more than {SOON:g} s"
        )
        assert times[len(times) // 2] < SOON, times
        assert "Traceback" not in policyd.told()


def _first_answer(address: str) -> float:
    """Ask until there is an answer; when that was."""
    answered: list[float] = []

    def asked() -> bool:
        try:
            with Asker(address) as asker:
                asker.ask(user="", stage="RCPT")
        except (OSError, EOFError):
            return False
        answered.append(time.monotonic())
        return True

    wait_for(asked, lambda: "no answer after kill -9")
    return answered[0]


def test_a_request_is_asked_again_after_its_answer_was_lost(tmp_path: Path) -> None:
    """1,000 answers that nobody took: the same requests asked again count nothing more."""
    address = f"unix:{tmp_path}/sock"
    with Policyd(tmp_path, policy(address, limits=["100000 messages per 1d"])) as policyd:
        requests = [request() for _ in range(1000)]

        def ask_and_leave(first: int) -> None:
            with Asker(address) as asker:
                asker.send(b"".join(requests[first::20]))

        in_parallel([lambda first=first: ask_and_leave(first) for first in range(20)])  # type: ignore[misc]
        with Asker(address) as asker:
            for each in requests:
                asker.send(each)
                assert asker.answer() == "DUNNO"
        assert policyd.used("alice@example.org", "messages") == 1000
