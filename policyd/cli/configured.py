"""The checks that the configuration has of one kind, for commands that ask them by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policyd.errors import UserError

if TYPE_CHECKING:
    from policyd.cli.common import Session
    from policyd.config.sections import CheckSection


def checks_of(session: Session, use: str, **given: Any) -> list[tuple[CheckSection, Any]]:
    """The sections with this ``use``, each with its check.

    :param given: what the check is handed beside its name and direction (:class:`policyd.checks.Context`).
    :raises UserError: one does not take its options.
    """
    from policyd.checks import Context, load

    found = []
    for section in session.config.checks:
        if section.use == use:
            context = Context(section.name, section.direction, site=session.config.site, **given)
            try:
                found.append((section, load(use)[1](section.options, context)))
            except ValueError as error:
                raise UserError(f"{section.place}: check {section.name!r}: {error}") from None
    return found
