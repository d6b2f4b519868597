"""A month of mail of 1,000 ordinary users and 50 stolen passwords, the same one for the same seed.

Ordinary users, by what they do:

* office (600): 3 to 20 mails on a working day between 7 and 19 of their own time zone, few on other days; one to three
  recipients out of 30 to 150 correspondents, one in 25 somebody new, now and then an invitation to 10 to 35 of them. From the
  office (one network), from home, and from a telephone whose network changes with the hour.
* light (240): none to three mails a day, from home or a telephone.
* travellers (50): as office, from another hotel or airport every few hours.
* secretaries (40): as light, and once a week a letter to the 25 to 45 members of a club, of whom up to two are new.
* applications (40): a ticket system, a monitor, a scanner; one network, day and night, one recipient a mail out of 10 to 60. Two
  have a storm of 250 to 400 alarms in an hour. What is refused for now they try again each minute (office.py).
* bulk (20): newsletters and invoice runs, 200 to 2,000 recipients in a few hours, weekly or monthly. The admin knows them and has
  put them into the tier ``bulk``.
* newcomers (10): office, from the second week on, a few mails a day at first.

A fifth of all but applications and bulk is on holiday for one to two weeks, where a telephone abroad sends a mail now and then.

Stolen passwords, ten of each kind, of office and light users, from the second week on; each goes on until it is refused for good,
at most two days:

* burst: one network, a mail a second or two, 1 to 20 strangers each.
* networks: each mail from another network all over the world, ten to thirty a minute, one to three strangers each.
* address book: one network, a mail every 5 to 20 s to one to ten recipients, a third of them whom the victim knows.
* slow: two networks, 6 to 15 strangers an hour, day and night.
* one place: one network, in the hours after midnight, 30 to 80 strangers an hour.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from policyd.units import DAY, HOUR, MINUTE, SECOND

DAYS = 30
WEEK = 7 * DAY
#: A Monday, 00:00 UTC, in ms since 1970.
START = 1_790_553_600_000
KINDS = ("burst", "networks", "address-book", "slow", "one-place")
DOMAIN = "example.org"


class Mail(NamedTuple):
    """One mail, when it is sent and how."""

    at: int
    user: str
    client: str
    recipients: tuple[str, ...]
    size: int
    #: The kind of the theft; empty: its owner sends it.
    theft: str = ""


@dataclass
class User:
    """Somebody ordinary."""

    name: str
    role: str
    #: ms east of UTC.
    zone: int
    office: str
    home: str
    carrier: int
    correspondents: list[str]
    per_day: float
    away: range = range(0)
    begins: int = 0
    met: int = 0
    members: list[str] = field(default_factory=list)

    @property
    def login(self) -> str:
        """The account."""
        return f"{self.name}@{DOMAIN}"


class Month:
    """All of it."""

    def __init__(self, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self._host = 0
        roles = (
            ["office"] * 600
            + ["light"] * 240
            + ["traveller"] * 50
            + ["secretary"] * 40
            + ["application"] * 40
            + ["bulk"] * 20
            + ["newcomer"] * 10
        )
        self.users = [self._user(number, role) for number, role in enumerate(roles)]
        self.applications = [user for user in self.users if user.role == "application"]
        victims = self.chance.sample(
            [u for u in self.users if u.role in ("office", "light")], 10 * len(KINDS)
        )
        #: The thefts: whose password, and what kind.
        self.thefts = {victim.login: KINDS[number % len(KINDS)] for number, victim in enumerate(victims)}
        self._victims = victims

    @property
    def bulk(self) -> list[str]:
        """The accounts that the admin has put into the tier ``bulk``."""
        return [user.login for user in self.users if user.role == "bulk"]

    def _network(self) -> str:
        self._host += 1
        return f"198.{18 + (self._host >> 16 & 1)}.{self._host >> 8 & 255}.{self._host & 255}"

    def _user(self, number: int, role: str) -> User:
        chance = self.chance
        known = {"light": (8, 40), "application": (10, 60), "bulk": (200, 2_000)}.get(role, (30, 150))
        name = f"{role}{number}"
        user = User(
            name,
            role,
            chance.choice((-5, 0, 0, 1, 1, 1, 2, 8)) * HOUR,
            f"100.{64 + number % 40}.{number % 256}.10",
            f"203.{number >> 8}.{number & 255}.7",
            chance.randrange(20),
            [f"{name}-c{n}@d{chance.randrange(4_000)}.example" for n in range(chance.randint(*known))],
            {"light": 1.5, "application": 60.0, "newcomer": 3.0, "secretary": 1.5}.get(
                role, chance.uniform(3, 20)
            ),
        )
        if role == "secretary":
            user.members = [
                f"{name}-m{n}@d{chance.randrange(4_000)}.example" for n in range(chance.randint(25, 45))
            ]
        if role == "newcomer":
            user.begins = chance.randint(7, 20)
        if role not in ("application", "bulk", "newcomer") and chance.random() < 0.2:
            first = chance.randrange(DAYS)
            user.away = range(first, first + chance.randint(7, 14))
        return user

    # --- ordinary mail -----------------------------------------------------------------------------------------------

    def _client(self, user: User, at: int) -> str:
        chance = self.chance
        if user.role in ("application", "bulk"):
            return user.office
        if user.role == "traveller":
            # Another hotel, train or airport every three hours; a telephone in between.
            if chance.random() < 0.6:
                return f"192.{88 + user.carrier}.{hash_of(user.name, at // (3 * HOUR)) % 256}.9"
        hour = at // HOUR
        where = hash_of(user.name, "place", hour) % 10
        if where < 2:
            # A telephone: the network of its carrier that it has in this hour.
            return f"10.{user.carrier}.{hash_of(user.name, hour) % 12}.{hash_of(user.name) % 250 + 1}"
        return user.office if where < 7 and user.role != "light" else user.home

    def _recipients(self, user: User) -> tuple[str, ...]:
        chance = self.chance
        if chance.random() < 0.006 and user.role in ("office", "traveller"):
            count = min(chance.randint(10, 35), len(user.correspondents))
            return tuple(chance.sample(user.correspondents, count))
        found = []
        for _ in range(chance.choice((1, 1, 1, 1, 2, 3))):
            if chance.random() < 0.04 and user.role != "application":
                user.met += 1
                found.append(f"{user.name}-n{user.met}@d{chance.randrange(4_000)}.example")
                user.correspondents.append(found[-1])
            else:
                # Few get most of it.
                found.append(user.correspondents[int(len(user.correspondents) * chance.random() ** 2.5)])
        return tuple(dict.fromkeys(found))

    def _ordinary(self, user: User, day: int) -> Iterator[Mail]:
        chance = self.chance
        if day < user.begins:
            return
        if user.role == "bulk":
            yield from self._run(user, day)
            return
        midnight = START + day * DAY - user.zone
        weekend = day % 7 >= 5
        mean = user.per_day * (0.1 if weekend and user.role != "application" else 1.0)
        if day in user.away:
            mean = 0.7
        if user.role == "newcomer":
            mean = min(12.0, 2.0 + (day - user.begins))
        for _ in range(min(int(chance.gammavariate(2.0, mean / 2.0) + chance.random()), int(mean * 3) + 2)):
            if user.role == "application":
                at = midnight + chance.randrange(DAY)
            else:
                at = midnight + int(chance.triangular(7, 19, 10.5) * HOUR)
            client = self._client(user, at)
            if day in user.away:
                client = f"172.{16 + user.carrier}.{hash_of(user.name, day) % 200}.5"
            size = int(chance.lognormvariate(10, 1.4))
            yield Mail(at, user.login, client, self._recipients(user), size)
        if (
            user.role == "application"
            and (number := self.applications.index(user)) < 2
            and day == 12 + number
        ):
            at = midnight + 3 * HOUR
            for _ in range(chance.randint(250, 400)):
                at += chance.randrange(1, 12) * SECOND
                yield Mail(
                    at, user.login, user.office, (user.correspondents[0],), chance.randrange(500, 5_000)
                )
        if user.members and day % 7 == hash_of(user.name) % 5:
            for _ in range(chance.randint(0, 2)):
                user.met += 1
                user.members.append(f"{user.name}-n{user.met}@d{chance.randrange(4_000)}.example")
            at = midnight + int(chance.triangular(9, 21, 19) * HOUR)
            for first in range(0, len(user.members), 20):
                yield Mail(at, user.login, user.home, tuple(user.members[first : first + 20]), 40_000)
                at += 20 * SECOND

    def _run(self, user: User, day: int) -> Iterator[Mail]:
        weekly = hash_of(user.name) % 2 == 0
        if (day % 7 if weekly else day) != hash_of(user.name, "day") % (7 if weekly else DAYS):
            return
        at = START + day * DAY + 8 * HOUR
        for recipient in user.correspondents:
            at += self.chance.randrange(1, 6) * SECOND
            yield Mail(at, user.login, user.office, (recipient,), 60_000)

    # --- stolen passwords --------------------------------------------------------------------------------------------

    def _strangers(self, count: int) -> tuple[str, ...]:
        return tuple(
            f"x{self.chance.getrandbits(48):x}@s{self.chance.randrange(9_000)}.example" for _ in range(count)
        )

    def _theft(self, victim: User, kind: str) -> Iterator[Mail]:
        chance = self.chance
        at = START + chance.randint(8, DAYS - 3) * DAY + chance.randrange(DAY)
        until = at + 2 * DAY
        places = [self._network(), self._network()]
        sent = 0
        while at < until and sent < 3_000:
            client = places[0]
            if kind == "burst":
                recipients = self._strangers(chance.randint(1, 20))
                pause = chance.randint(1, 2) * SECOND
            elif kind == "networks":
                client = f"{chance.randint(20, 90)}.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"
                recipients = self._strangers(chance.randint(1, 3))
                pause = chance.randint(2, 6) * SECOND
            elif kind == "address-book":
                known = [c for c in victim.correspondents if chance.random() < 0.02][:3]
                recipients = (*known, *self._strangers(chance.randint(1, 7)))
                pause = chance.randint(5, 20) * SECOND
            elif kind == "slow":
                client = chance.choice(places)
                recipients = self._strangers(1)
                pause = chance.randint(4, 10) * MINUTE
            else:
                recipients = self._strangers(chance.randint(1, 3))
                pause = chance.randint(90, 240) * SECOND
                if at % DAY > 6 * HOUR:
                    at += DAY - at % DAY
            yield Mail(at, victim.login, client, recipients, 3_000, kind)
            sent += len(recipients)
            at += pause

    def mails(self) -> list[Mail]:
        """All mails in the order in which they are sent."""
        found: list[Mail] = []
        for user in self.users:
            for day in range(DAYS):
                found += self._ordinary(user, day)
        for victim in self._victims:
            found += self._theft(victim, self.thefts[victim.login])
        end = START + DAYS * DAY
        return sorted(mail for mail in found if START <= mail.at < end)


def hash_of(*parts: object) -> int:
    """A number that is the same in every run."""
    import zlib

    return zlib.crc32(repr(parts).encode())
