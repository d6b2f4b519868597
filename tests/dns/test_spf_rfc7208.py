"""SPF says what RFC 7208 says: its whole test suite through policyd's own check, over the shared resolver and real sockets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from policyd.checks import Context
from policyd.checks.spf import Check, Options
from policyd.dns.resolver import Resolver
from policyd.dns.spf import Evaluator
from policyd.inquiry import Inquiry
from policyd.request import RCPT, Site
from policyd.steering import Steering
from tests.dns.zones import Scenario, Zone
from tests.fakes import on_loop

SUITE = Path(__file__).parents[1] / "data" / "rfc7208-tests.yml"
SCENARIOS = list(yaml.safe_load_all(SUITE.read_text(encoding="utf-8")))
#: Cases that policyd does not decide as the suite says, by name, each with its reason.
EXEMPT: dict[str, str] = {}

#: Long enough for a busy machine, short enough that a silent nameserver is not waited for long, s.
LOOK_UP, PATIENCE = 0.4, 30.0


def test_the_suite_is_whole() -> None:
    """A file that lost its cases would be a green test of nothing; an exemption names a case that there is."""
    names = [name for scenario in SCENARIOS for name in scenario["tests"]]
    assert len(SCENARIOS) == 16
    assert len(names) == 203
    assert set(EXEMPT) <= set(names)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each["description"].replace(" ", "-"))
@on_loop
async def test_each_case_gets_its_result(scenario: Any) -> None:
    """The finding of the check is a result that the suite allows, and the domain's explanation is the one it gives."""
    wrong = []
    with Scenario(Zone(scenario["zonedata"])) as server:
        resolver = Resolver([server.nameserver], timeout=LOOK_UP)
        try:
            for name, case in scenario["tests"].items():
                found, text = await decide(resolver, case)
                wanted = case["result"] if isinstance(case["result"], list) else [case["result"]]
                told = case.get("explanation")
                if told == "DEFAULT":
                    # The domain gives none: the check says it in its own words.
                    told = f"{case['host']} may not send its mail"
                if found not in wanted or (told is not None and text != f"5.7.23 <{told}> {{ref}}"):
                    if name not in EXEMPT:
                        wrong.append(f"{name}: {found}, {text!r}; should be {case['result']}, {told!r}")
        finally:
            await resolver.close()
    assert not wrong, "\n".join(wrong)


async def decide(resolver: Resolver, case: Any) -> tuple[object, str]:
    """What the check finds, and the text of its refusal."""
    evaluator = Evaluator(resolver, case.get("receiver") or "unknown")
    check = Check(Options(helo=False, text="<{explanation}> {ref}"), Context("spf", "mx", spf=evaluator))
    request = Site().request(
        {
            "protocol_state": RCPT,
            "client_address": case["host"],
            "helo_name": case.get("helo") or "",
            "sender": case.get("mailfrom") or "",
        }
    )
    opinion = await check.check(request, 0, Steering(), Inquiry(time.monotonic() + PATIENCE))
    assert opinion is not None, case
    return opinion.finding, opinion.answer.text
