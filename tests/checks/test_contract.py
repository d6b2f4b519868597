"""What every check of policyd keeps to: read from the package, so that a new one is held to it by being there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest

from policyd import checks
from policyd.checks import Context, describe, load, names, options_of
from policyd.config.values import WRITERS
from policyd.dnsbl_sites import sites
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import STAGES, SUBMISSION, Site
from policyd.steering import Steering
from policyd.tiers import Tiers

HERE = Path(__file__).parent
#: Keys without which a check has nothing to do, and an example of each.
REQUIRED: dict[str, dict[str, Any]] = {"dnsbl": {"sites": sites(["bl.example.net"])}}
MODULES = [module.name for module in pkgutil.iter_modules(checks.__path__)]


def module_of(name: str) -> Any:
    return importlib.import_module(f"policyd.checks.{name}")


def test_the_package_names_its_checks() -> None:
    """Each module is a check: there is nothing to register."""
    assert names() == sorted(MODULES)
    assert {"allow", "bans", "quota"} <= set(names())
    assert list(describe()) == names()


@pytest.mark.parametrize("name", MODULES)
def test_it_says_what_it_is_for(name: str) -> None:
    """`policyctl check list` and the manual show the first line; the classes are described too."""
    module = module_of(name)
    first, _, rest = inspect.getdoc(module).partition("\n")  # type: ignore[union-attr]
    assert first.endswith(".")
    assert len(first) <= 130
    assert rest.strip(), "what it does in more than one line: meaning, units, what it does not do"
    assert describe()[name] == first
    for described in (module.Options, module.Check, module.Check.check):
        assert inspect.getdoc(described)


@pytest.mark.parametrize("name", MODULES)
def test_its_options_are_frozen_and_have_defaults(name: str) -> None:
    """``use = "name"`` and what is required is a section; each key has a reader and a help text, each default reads as one."""
    options = options_of(name)
    required = [field.name for field in dataclasses.fields(options) if field.default is dataclasses.MISSING]
    assert required == list(REQUIRED.get(name, {}))
    assert dataclasses.is_dataclass(options)
    assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    made = options(**REQUIRED.get(name, {}))
    assert made == options(**REQUIRED.get(name, {}))
    for field in dataclasses.fields(options):
        assert callable(field.metadata["read"]), field.name
        help_text = field.metadata["help"]
        assert help_text.endswith("."), field.name
        assert "\n" not in help_text
        default = getattr(made, field.name)
        hash(default)
        if isinstance(default, str | int):
            written = WRITERS.get(field.metadata["read"], lambda value: value)(default)
            assert field.metadata["read"](written) == default, field.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, default)


def built(check: Any, options: Any, direction: str) -> tuple[Any, str]:
    """The check for this direction, or why there is none."""
    try:
        return check(options, Context("name", direction)), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("name", MODULES)
def test_its_class_keeps_the_contract(name: str) -> None:
    """Stages that exist, steadfast or not, an ``async def check`` with the four arguments."""
    options, check = load(name)
    assert isinstance(check.stages, frozenset)
    assert check.stages <= set(STAGES)
    assert isinstance(check.steadfast, bool)
    assert inspect.iscoroutinefunction(check.check)
    assert list(inspect.signature(check.check).parameters) == [
        "self",
        "request",
        "now",
        "steering",
        "inquiry",
    ]
    assert list(inspect.signature(check.__init__).parameters) == ["self", "options", "context"]
    for direction in ("submission", "mx", "any"):
        made, why = built(check, options(**REQUIRED.get(name, {})), direction)
        if made is None:
            # A direction in which it would do nothing is an error of the configuration, and says what to write.
            assert direction != "any"
            assert f"for = {direction!r}" in why
            continue
        for needing, stages in made.needs.items():
            assert needing in ("submission", "mx")
            assert direction in ("any", needing), "a stage that is never asked would be missed for ever"
            assert stages <= (check.stages or frozenset(STAGES))


@pytest.mark.parametrize("stage", [*STAGES, "NEW-STAGE", ""])
@pytest.mark.parametrize("name", MODULES)
def test_it_answers_a_bare_request_at_every_stage(name: str, stage: str) -> None:
    """Nothing is known but the stage: no exception, and an opinion or none; with no loop running."""
    options, check = load(name)
    made = check(options(**REQUIRED.get(name, {})), Context(name, "any", Site(), Tiers()))
    for context in ("", SUBMISSION):
        request = Site().request({"protocol_state": stage, "policy_context": context})
        with pytest.raises(StopIteration) as stop:
            made.check(request, 0, Steering(), Inquiry()).send(None)  # type: ignore[attr-defined]
        assert stop.value.value is None or isinstance(stop.value.value, Opinion)


@pytest.mark.parametrize("name", MODULES)
def test_it_has_a_test_of_its_own(name: str) -> None:
    """A check without a test is not merged."""
    assert (HERE / f"test_{name}.py").is_file()


@pytest.mark.parametrize(
    "use", ["nothing", "", "Quota", ".", "..", ".quota", "no.such.module", "json.decoder", "a..b"]
)
def test_what_is_no_check_is_a_lookup_error(use: str) -> None:
    """The configuration's ``use`` is the admin's text: one kind of error, which names it."""
    with pytest.raises(LookupError) as caught:
        load(use)
    assert repr(use) in str(caught.value)


def test_a_check_from_elsewhere_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's own check needs no change of policyd; a broken one is named with its reason."""
    (tmp_path / "site_checks").mkdir()
    (tmp_path / "site_checks" / "fine.py").write_text("class Options: ...\nclass Check: ...\n")
    (tmp_path / "site_checks" / "broken.py").write_text("class Options(\n")
    (tmp_path / "site_checks" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    options, check = load("site_checks.fine")
    assert (options.__name__, check.__name__) == ("Options", "Check")
    assert load("policyd.checks.quota") == load("quota")
    for name in ("broken", "empty"):
        with pytest.raises(LookupError, match=f"'site_checks.{name}' cannot be loaded as a check: "):
            load(f"site_checks.{name}")
