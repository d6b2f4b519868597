"""The wall clock is stepped by hours and days, while policyd runs and while it does not: limits and bans go by elapsed time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.asking import ALICE, Asker, policy
from tests.system.daemon import Policyd
from tests.system.waiting import wait_for

HOUR, DAY = 3600, 86400
STEPS = [HOUR, -DAY, -HOUR, DAY]
BANNED = "mallory@example.org"


def library() -> str:
    """Debian's libfaketime, wherever its architecture puts it."""
    found = [
        *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
        *Path("/usr/lib").glob("faketime/libfaketimeMT.so.1"),
    ]
    assert found, "libfaketime is missing; tools/install-test-packages.sh installs it"
    return str(found[0])


class WallClock:
    """The wall clock of the processes started with :attr:`environment`; monotonic clocks stay real, as in life."""

    def __init__(self, directory: Path) -> None:
        self._stamp = directory / "faketime"
        self._ahead = 0
        self.environment = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._stamp),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.step(0)

    def step(self, seconds: int) -> None:
        """Move it."""
        self._ahead += seconds
        # In one piece: it is read at every look at the clock.
        new = self._stamp.with_suffix(".new")
        new.write_text(f"{self._ahead:+d}\n")
        new.rename(self._stamp)

    def clocks(self) -> dict[str, float]:
        """What such a process sees."""
        code = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"
        printed = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, capture_output=True, text=True, check=True
        ).stdout
        return dict(zip(("wall", "monotonic", "boot"), map(float, printed.split()), strict=True))


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    """A wall clock for this test alone."""
    return WallClock(tmp_path)


def test_the_tool_itself(wall_clock: WallClock) -> None:
    """What the other tests rest on: the wall clock moves, the clocks of elapsed time do not."""
    wall_clock.step(DAY)
    seen = wall_clock.clocks()
    assert abs(seen["wall"] - time.time() - DAY) < HOUR
    assert abs(seen["monotonic"] - time.monotonic()) < HOUR
    assert abs(seen["boot"] - time.clock_gettime(time.CLOCK_BOOTTIME)) < HOUR


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
def test_steps_give_nothing_and_take_nothing(tmp_path: Path, wall_clock: WallClock, restart: bool) -> None:
    """After each step: who is at the limit stays there, a ban for two hours holds, others can send at once, short windows and
    short bans end in their own time, and the step is told as an alarm."""
    address = f"unix:{tmp_path}/sock"
    limits = ["5 messages per 30m", "1000 recipients per 1h"]
    policyd = Policyd(tmp_path, policy(address, limits=limits), environment=wall_clock.environment)
    with policyd:
        with Asker(address) as asker:
            assert [asker.ask()[:3] for _ in range(6)] == ["DUN"] * 5 + ["450"]
        policyd.ctl("ban", "user", BANNED, "--for", "2h", "--force")
        for number, step in enumerate(STEPS):
            alarms = policyd.told().count("clock-step:")
            if restart:
                policyd.stop()
                wall_clock.step(step)
                policyd.start()
            else:
                wall_clock.step(step)
            with Asker(address) as asker:
                assert asker.ask().startswith("450 "), f"free quota after a step of {step} s"
                assert asker.ask(user=BANNED).startswith("550 "), f"the ban ended after a step of {step} s"
                fresh = f"user{number}@example.org"
                assert asker.ask(user=fresh) == "DUNNO"
                policyd.wait_told("clock-step:", alarms + 1)
                assert asker.ask().startswith("450 ")
                assert asker.ask(user=BANNED).startswith("550 ")
                assert asker.ask(user=fresh) == "DUNNO"
        assert policyd.told().count("clock-step:") == len(STEPS)
        assert policyd.used(ALICE, "recipients", "1h") == 5
        # The clock is back where it was: what policyctl says about the end of the ban is right again.
        assert policyd.ctl_json("bans")


@pytest.mark.parametrize("step", [HOUR, -HOUR, DAY, -DAY])
def test_nobody_is_frozen(tmp_path: Path, wall_clock: WallClock, step: int) -> None:
    """A window of 2 s and a ban of 2 s that a step falls into end after 2 s, not after the step."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(
        tmp_path, policy(address, limits=["2 messages per 2s"]), environment=wall_clock.environment
    )
    with policyd, Asker(address) as asker:
        policyd.ctl("ban", "user", BANNED, "--for", "2s", "--force")
        assert asker.ask(user=BANNED).startswith("550 ")
        assert [asker.ask()[:3] for _ in range(3)] == ["DUN", "DUN", "450"]
        wall_clock.step(step)
        begun = time.monotonic()
        wait_for(lambda: asker.ask() == "DUNNO", policyd.told)
        wait_for(lambda: asker.ask(user=BANNED) == "DUNNO", policyd.told)
        assert time.monotonic() - begun < 20
        # Set after the step, by a policyctl that sees the stepped clock too.
        policyd.ctl("ban", "user", BANNED, "--for", "1h", "--force")
        assert asker.ask(user=BANNED).startswith("550 ")
        # Noticed before the clock goes back: two steps that cancel each other between two looks are none.
        policyd.wait_told("clock-step:")
        wall_clock.step(-step)
        policyd.wait_told("clock-step:", 2)
        assert asker.ask(user=BANNED).startswith("550 ")
