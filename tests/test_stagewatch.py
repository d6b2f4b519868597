"""A wrong wiring of Postfix is noticed from what it asks, and from nothing else."""

from __future__ import annotations

from policyd.checks import Context, quota
from policyd.engine import Rule
from policyd.request import ASKED_BY_HAND
from policyd.stagewatch import ENOUGH, StageWatch
from policyd.units import parse_limit


def watch() -> StageWatch:
    options = quota.Options(limits=(parse_limit("5 recipients per 1h"),), count="all")
    check = quota.Check(options, Context("quota", "submission"))
    return StageWatch([Rule("quota", "quota", "submission", "enforce", "skip", check)])


def test_a_stage_that_never_comes_is_told_once() -> None:
    """After enough requests of the direction, and not again."""
    stages = watch()
    for _ in range(ENOUGH - 1):
        stages.count("submission", "RCPT", "1.2.3")
    assert not list(stages.missing())
    stages.count("submission", "RCPT", "1.2.3")
    (line,) = stages.missing()
    assert line.startswith("stage-missing: check quota needs END-OF-MESSAGE")
    assert not list(stages.missing())


def test_what_was_asked_by_hand_is_not_counted() -> None:
    """One `policyctl ask` at the stage must not hide that Postfix never asks there."""
    stages = watch()
    for _ in range(ENOUGH):
        stages.count("submission", "RCPT", "1.2.3")
    stages.count("submission", "END-OF-MESSAGE", f"{ASKED_BY_HAND}17a")
    assert len(list(stages.missing())) == 1
    stages = watch()
    for _ in range(ENOUGH):
        stages.count("submission", "RCPT", f"{ASKED_BY_HAND}17a")
    assert not list(stages.missing())


def test_how_each_stage_is() -> None:
    """Not known before enough was asked; missed then; and there once it comes."""
    stages = watch()
    assert [missed for _, missed, _ in stages.states()] == [None]
    for _ in range(ENOUGH):
        stages.count("submission", "RCPT", "1.2.3")
    ((subject, missed, why),) = stages.states()
    assert (subject, missed) == ("check quota at END-OF-MESSAGE of submission", True)
    assert "smtpd_end_of_data_restrictions" in why
    stages.count("submission", "END-OF-MESSAGE", "1.2.3")
    assert [missed for _, missed, _ in stages.states()] == [False]


def test_what_was_refused_does_not_miss_a_later_stage() -> None:
    """A thief who is refused at RCPT for hours never comes to END-OF-MESSAGE: no wrong wiring, and no alert at night."""
    stages = watch()
    for _ in range(ENOUGH + 5):
        stages.count("submission", "RCPT", "1.2.3")
        stages.refused("submission", "1.2.3")
    assert not list(stages.missing())
    assert [missed for _, missed, _ in stages.states()] == [None]
    stages.refused("submission", f"{ASKED_BY_HAND}17a")
    for _ in range(ENOUGH):
        stages.count("submission", "RCPT", "1.2.3")
    (line,) = stages.missing()
    assert f"of {ENOUGH} submission requests that were not refused none was" in line
