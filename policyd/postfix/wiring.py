"""What must change in main.cf and master.cf for Postfix to ask policyd, once and at both stages; pure.

Port 25 asks by ``$policyd_mx``, ports 587 and 465 by ``$policyd_submission``. In a list policyd stands behind what only
refuses and before what can permit: an answer of policyd never permits anything, and a permit before it would hide
it. What is right already is left as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from policyd.postfix import lists
from policyd.postfix.addresses import Addresses, is_ours
from policyd.postfix.lists import Item
from policyd.postfix.settings import END_OF_DATA, LISTS, RECIPIENT, RELAY, Entry, Settings, postconf
from policyd.request import MX, SUBMISSION

#: Longer than policyd's own deadline by this, s; Postfix waits so long for each of two tries.
MARGIN = 5
UNAVAILABLE = "451 4.3.0 Sending is not possible at the moment; try again in some minutes"
USERS_ONLY = "permit_sasl_authenticated,reject"
_REFERENCE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|\((\w+)\))\Z")


class Change(NamedTuple):
    """One parameter that gets another value."""

    #: ``""``: main.cf; else the service of master.cf, as ``submission/inet``.
    service: str
    name: str
    #: As it was written; ``None``: it was not set.
    before: str | None
    after: str

    @property
    def text(self) -> str:
        """The argument of postconf."""
        return (
            f"{self.service}/{self.name}={self.after}"
            if self.service
            else f"{self.name} = {self.after}".rstrip()
        )

    @property
    def flag(self) -> str:
        """The option of postconf."""
        return "-P" if self.service else "-e"


@dataclass
class Plan:
    """All changes, and what the admin should know."""

    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def commands(self, directory: str) -> list[str]:
        """The same for a shell."""
        return [shlex.join([*postconf(directory), change.flag, change.text]) for change in self.changes]


class _Planner:
    def __init__(self, settings: Settings, addresses: Addresses, deadline: int) -> None:
        self.settings = settings
        self.addresses = addresses
        self.deadline = deadline
        self.plan = Plan()
        #: Values of main.cf as they will be.
        self.new: dict[str, str] = {}

    # --- reading -----------------------------------------------------------------------------------------------------

    def ours(self, item: Item) -> bool:
        """Whether an item, as written or replaced, asks policyd and does nothing else."""
        parts = self.parts(item)
        return bool(parts) and all(
            is_ours(each, self.addresses.all, self.settings.queue_directory) for each in parts
        )

    def parts(self, item: Item) -> list[Item]:
        """What an item stands for: itself, or what ``$name`` or a class of restrictions does."""
        reference = _REFERENCE.match(item.name)
        name = next(filter(None, reference.groups()), "") if reference else item.name
        classes = lists.words(self.settings.values.get("smtpd_restriction_classes", ""))
        if not reference and name not in classes:
            return [item]
        return lists.flat(
            self.settings.values.get(name, ""), {each: self.settings.values.get(each, "") for each in classes}
        )

    def stands_right(self, found: Sequence[Item], direction: str) -> bool:
        """Whether a list asks policyd once, before what would hide it, and not in the name of the other direction."""
        asked = [at for at, item in enumerate(found) if self.ours(item)]
        if len(asked) != 1:
            return False
        if any(item.name in lists.HIDES or lists.ends(item) for item in found[: asked[0]]):
            return False
        context = lists.policy_service(found[asked[0]].argument).options.get("policy_context", "")
        return direction != SUBMISSION or context != MX

    def without(self, raw: Sequence[Item]) -> list[Item]:
        """The list without policyd; what stands for a list with policyd among others is written out."""
        found: list[Item] = []
        for item in raw:
            parts = self.parts(item)
            kept = [part for part in parts if not self.ours(part)]
            found += [item] if len(kept) == len(parts) else kept
        return found

    def placed(self, raw: Sequence[Item], token: str) -> list[Item]:
        """The list with policyd at its place, and nowhere else."""
        rest = self.without(raw)
        at = next(
            (
                at
                for at, item in enumerate(rest)
                if any(lists.may_permit(part) or lists.ends(part) for part in self.parts(item))
            ),
            len(rest),
        )
        return [*rest[:at], Item(token), *rest[at:]]

    # --- writing -----------------------------------------------------------------------------------------------------

    def main(self, name: str, value: str) -> None:
        """Set a parameter of main.cf, if it is not so already."""
        before = (
            self.settings.raw.get(name)
            if name in self.settings.explicit or name in self.settings.raw
            else None
        )
        if " ".join((before or "").split()) == " ".join(value.split()) and before is not None:
            return
        if self.new.get(name) == value:
            return
        explicit = before if name in self.settings.explicit else None
        self.new[name] = value
        self.plan.changes.append(Change("", name, explicit, value))

    def entry(self, entry: Entry, name: str, restrictions: Sequence[Item], parameter: str) -> None:
        """Set a list of one service; where it has spaces, through a parameter of main.cf (``postconf -P`` takes none)."""
        value = ",".join(map(str, restrictions))
        if re.search(r"\s", value):
            self.main(parameter, lists.written(restrictions))
            value = f"${parameter}"
        self.override(entry, name, value)

    def override(self, entry: Entry, name: str, value: str) -> None:
        before = entry.raw.get(name)
        if before != value:
            self.plan.changes.append(Change(entry.key, name, before, value))

    def service(self, name: str, direction: str, address: str, default: str) -> str:
        """Define ``name`` as a check of policyd; how a list refers to it."""
        if (
            not self.ours(Item(f"${name}"))
            or lists.policy_service(self.parts(Item(f"${name}"))[0].argument).address != address
        ):
            timeout = self.deadline // 1000 + MARGIN
            self.main(
                name,
                f"check_policy_service {{ {address}, timeout={timeout}s, policy_context={direction}, {default} }}",
            )
        return f"${name}"

    # --- the services ------------------------------------------------------------------------------------------------

    def port_25(self) -> None:
        """The lists of main.cf, and of services that have their own of these and are no submission."""
        token = ""
        others = [
            e
            for e in self.settings.entries
            if not self.settings.submits(e) and not self.settings.reinjects(e)
        ]
        wanted: list[tuple[Entry | None, str]] = [(None, RECIPIENT), (None, END_OF_DATA)]
        wanted += [
            (entry, name) for entry in others for name in (RECIPIENT, END_OF_DATA) if name in entry.raw
        ]
        for entry, name in wanted:
            if self.stands_right(self.settings.items(entry, name), MX):
                continue
            token = token or self.service("policyd_mx", MX, self.addresses.mx, "default_action=DUNNO")
            raw = lists.items(self.settings.raw_of(entry, name))
            if (
                not raw
                and name == RECIPIENT
                and self.settings.of(entry, "smtpd_reject_unlisted_recipient") == "yes"
            ):
                raw = [Item("reject_unlisted_recipient")]
            placed = self.placed(raw, token)
            if entry is None:
                self.main(name, lists.written(placed))
            else:
                self.entry(entry, name, placed, f"policyd_{_word(entry.name)}_{name.removeprefix('smtpd_')}")

    def submission(self) -> None:
        """Ports 587 and 465."""
        entries = [entry for entry in self.settings.entries if self.settings.submits(entry)]
        if not entries:
            self.plan.notes.append(
                "master.cf has no submission entry switched on: users' mail is asked about only where they log in on port 25"
            )
        for name, base in (
            (RECIPIENT, "mua_recipient_restrictions"),
            (END_OF_DATA, "mua_end_of_data_restrictions"),
        ):
            taken: dict[str, str] = {}
            for entry in entries:
                if self.stands_right(self.settings.items(entry, name), SUBMISSION):
                    continue
                token = self.service(
                    "policyd_submission",
                    SUBMISSION,
                    self.addresses.submission,
                    f"{{ default_action = {UNAVAILABLE} }}",
                )
                wanted, own = self._wanted(entry, name, token)
                value = lists.written(wanted)
                parameter = own or base
                if taken.get(parameter, value) != value or (
                    not own and self._means_something_else(parameter, value)
                ):
                    parameter = f"{base}_{_word(entry.port)}"
                taken[parameter] = value
                self.main(parameter, value)
                self.override(entry, name, f"${parameter}")
                if name == RECIPIENT:
                    self._keep_strangers_out(entry)

    def _keep_strangers_out(self, entry: Entry) -> None:
        """Refuse before policyd is asked whom the list behind policyd refuses anyway (Debian's entries leave it to that)."""
        behind = [item for item in self.settings.items(entry, RECIPIENT) if not self.ours(item)]
        if behind == lists.items(USERS_ONLY) and not self.settings.of(entry, RELAY):
            self.override(entry, RELAY, USERS_ONLY)

    def _means_something_else(self, parameter: str, value: str) -> bool:
        """Whether a parameter that nobody refers to has a value of the admin's that would be lost."""
        there = self.settings.raw.get(parameter)
        return (
            there is not None
            and lists.written(self.placed(lists.items(there), "$policyd_submission")) != value
        )

    def _wanted(self, entry: Entry, name: str, token: str) -> tuple[list[Item], str]:
        """The list that the service is to have, and the parameter of main.cf in which it stands already, if in one."""
        raw = lists.items(self.settings.raw_of(entry, name))
        own = ""
        if len(raw) == 1 and not self.ours(raw[0]) and name in entry.raw:
            reference = _REFERENCE.match(raw[0].name)
            if reference and self._for_submission_alone(name, raw[0].name):
                own = next(filter(None, reference.groups()))
                raw = lists.items(self.settings.raw.get(own, ""))
        relay = self.settings.items(entry, RELAY)
        if not raw and name == RECIPIENT and relay == lists.items(USERS_ONLY):
            raw = relay
        return self.placed(raw, token), own

    def _for_submission_alone(self, name: str, reference: str) -> bool:
        """Whether only this list of submission entries refers to a parameter, so that it may be changed in its place."""
        users = [("", other) for other, raw in self.settings.raw.items() if reference in lists.words(raw)]
        for entry in self.settings.entries:
            for other, raw in entry.raw.items():
                if reference in lists.words(raw) and not (self.settings.submits(entry) and other == name):
                    users.append((entry.key, other))
        return not users

    def filters(self) -> None:
        """What a content filter gives back was asked about when it came in."""
        for entry in self.settings.entries:
            if not self.settings.reinjects(entry):
                continue
            for name in (RECIPIENT, END_OF_DATA):
                inherits = name not in entry.raw
                if not inherits and not any(map(self.ours, self.settings.items(entry, name))):
                    continue
                raw = lists.items(self.settings.raw_of(entry, name))
                self.entry(
                    entry,
                    name,
                    self.without(raw),
                    f"policyd_{_word(entry.port)}_{name.removeprefix('smtpd_')}",
                )

    def elsewhere(self) -> None:
        """Lists in which policyd has no business are the admin's to mend."""
        for name in LISTS:
            if name not in (RECIPIENT, END_OF_DATA) and any(map(self.ours, self.settings.items(None, name))):
                self.plan.notes.append(
                    f"{name} asks policyd, too; take it out there, or each recipient is asked about twice"
                )


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")


def plan(settings: Settings, addresses: Addresses, deadline: int) -> Plan:
    """What must change; nothing, if Postfix asks as it should.

    :param deadline: policyd's own, ms.
    """
    planner = _Planner(settings, addresses, deadline)
    planner.port_25()
    planner.submission()
    planner.filters()
    planner.elsewhere()
    return planner.plan
