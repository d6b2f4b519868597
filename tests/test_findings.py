"""Findings: what is read out of the column would, and how it is added up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import findings
from policyd.findings import Case, Findings, cases_of_would


def test_each_part_of_would_is_one_case() -> None:
    """Refusals of checks, holds and headers, suspensions and alerts of detectors."""
    would = (
        "quota: 450 4.7.1 Sending limit reached; 5 of 5. ref ----- | hold-it: HOLD sending limit reached | "
        "spf: PREPEND Received-SPF: pass | hijacked: suspend: 9 client networks, more than 8 in 10m | b: alert: x"
    )
    found = [(case.name, case.what, case.reason) for case in cases_of_would(would, "alice", 7)]
    assert found == [
        ("quota", "refuse", "Sending limit reached; 5 of 5. ref -----"),
        ("hold-it", "hold", "sending limit reached"),
        ("spf", "header", "Received-SPF: pass"),
        ("hijacked", "suspend", "9 client networks, more than 8 in 10m"),
        ("b", "alert", "x"),
    ]


@given(st.text())
def test_any_text_is_read_without_an_error(would: str) -> None:
    """The column is cut at 800 characters."""
    assert all(case.name and case.shadow for case in cases_of_would(would, "alice", 7))


def test_accounts_with_the_most_cases_come_first() -> None:
    """With the first reason, and the time from the first to the last."""
    found = Findings()
    for user, at in (("a", 3), ("b", 2), ("b", 1), ("b", 9)):
        found.add(Case("quota", "refuse", True, user, at, f"r{at}"))
    found.add(Case("hijacked", "suspend", False, "c", 5, "x"))
    quota = found.groups(["quota", "none"])[0]
    assert [(one.user, one.count, one.first_at, one.last_at, one.reason) for one in quota.most] == [
        ("b", 3, 1, 9, "r1"),
        ("a", 1, 3, 3, "r3"),
    ]
    assert [group.name for group in found.groups()] == ["hijacked", "quota"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million accounts are counted, the first ones by name."""
    monkeypatch.setattr(findings, "ACCOUNTS", 3)
    found = Findings()
    for number in range(10):
        found.add(Case("quota", "refuse", False, f"u{number}", 1, ""))
    (group,) = found.groups()
    assert (group.count, len(group.accounts), group.others) == (10, 3, 7)
