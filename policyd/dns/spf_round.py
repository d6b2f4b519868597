"""One run of pyspf over the answers that are known so far: a verdict, or the questions that are still open.

pyspf asks the DNS synchronously. Here it is run again and again, each time with more answers, so that it never waits and
needs no thread. A run goes on behind an open question as if the term did not match, in order to find further open ones:
they are asked side by side. A verdict counts only if nothing was open.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

import spf

from policyd.dns.spf_limits import fits, objection
from policyd.lookup import FOUND, UNKNOWN, Found
from policyd.senderpolicy import FAIL, PERMERROR, SOFTFAIL, TEMPERROR, Claim

#: A name and a record type, as the resolver is asked.
Question = tuple[str, str]

#: So many questions at most are found open in one run: what stands further back may not be needed at all.
MOST_OPEN = 8
#: Stands for a record that is not known yet: whatever includes it, nothing matches.
_OPEN_RECORD = b"v=spf1 ?all"
#: Macros by which the verdict depends on more than the client and the domain (RFC 7208 7.2).
_PERSONAL = re.compile(r"%\{[lsh]", re.IGNORECASE)
_ADDRESS_TERM = re.compile(r"[-+?~]?ip[46]:", re.IGNORECASE)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP4 = re.compile(
    rf"([-+?~]?)ip4:({_OCTET}(?:\.{_OCTET}){{3}})(?:/(3[0-2]|[12]\d|\d))?", re.IGNORECASE | re.ASCII
)


class Outcome(NamedTuple):
    """What a run came to."""

    #: Asked for next; while there are any the verdict means nothing.
    open: tuple[Question, ...]
    result: str = ""
    mechanism: str = ""
    explanation: str = ""
    problem: str = ""
    #: Would make the refusal say why; the verdict does not depend on it.
    explains: tuple[Question, ...] = ()
    #: The verdict holds for this sender and HELO name alone.
    personal: bool = False
    #: How long the answers may be remembered, s.
    ttl: int = 0


class Memo:
    """What runs over the same claim need not work out again."""

    __slots__ = ("terms",)

    def __init__(self) -> None:
        self.terms: dict[str, Any] = {}


class _Enough(Exception):
    """Enough questions are open for one run."""


class _Run(spf.query):  # type: ignore[misc]
    """pyspf's evaluation, with its questions answered from a table."""

    def __init__(self, claim: Claim, receiver: str, known: Mapping[Question, Found], memo: Memo) -> None:
        sender = f"{claim.local}@{claim.domain}"
        super().__init__(claim.ip, sender, claim.helo, receiver=receiver)
        # pyspf takes what follows the first @ for the domain; a quoted local part may hold one.
        self.l, self.o, self.d = claim.local, claim.domain, claim.domain
        self.ident = claim.identity
        self.open_questions: list[Question] = []
        self.open_explanations: list[Question] = []
        #: Why one of the client's names could not be found out; it may have been the one that would have matched.
        self.nameless = ""
        #: Whether the verdict, or the text that explains it, looks at the sender or the HELO name.
        self.personal = False
        self.explained_to_one = False
        self.ttl = 3600
        self._known = known
        self._memo = memo
        self._explaining = False
        self._depth = 0
        self._octets = 0
        self._family = socket.AF_INET6 if self.v == "ip6" else socket.AF_INET

    # --- the DNS ----------------------------------------------------------------------------------------------------

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[Any]:
        """The records of ``name``; the resolver has followed CNAMEs."""
        asked = question_name(str(name))
        found = self._known.get((asked, qtype)) if asked else Found("nodata", ttl=3600)
        if found is None:
            if self._explaining:
                self.open_explanations.append((asked, qtype))
                return []
            if (asked, qtype) not in self.open_questions:
                self.open_questions.append((asked, qtype))
                if len(self.open_questions) >= MOST_OPEN:
                    raise _Enough
            return [(_OPEN_RECORD,)] if qtype == "TXT" else []
        if found.status == UNKNOWN and found.why != "bad name":
            raise spf.TempError(f"{found.why or 'no answer'} for {qtype} of {asked}")
        if not self._explaining:
            self.ttl = min(self.ttl, found.ttl)
        records = self._records(found, qtype) if found.status == FOUND else []
        # What comes behind an open question is a guess, and no reason to end this run.
        if not records and not ignore_void and not self.open_questions:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError(f"more than {spf.MAX_VOID_LOOKUPS} look-ups found nothing")
        return records

    def _records(self, found: Found, qtype: str) -> list[Any]:
        if qtype != "TXT":
            return list(found.records)
        if not self._explaining:
            for record in found.records:
                if spf.RE_SPF.match(record):
                    self._octets += len(record)
                    if why := objection(record, self._octets):
                        raise spf.PermError(why)
        return [(record,) for record in found.records if fits(record)]

    def validated_ptrs(self) -> list[str]:
        """The client's names that lead back to it; a name that nobody can say anything about is left out (RFC 7208 5.5)."""
        try:
            names = self.dns_ptr(self.i)
        except spf.TempError as error:
            self.nameless = str(error)
            return []
        kept = []
        for name in names[: spf.MAX_PTR]:
            try:
                if self.cidrmatch(self.dns_a(name, self.A), self.cidrmax):
                    kept.append(name)
            except spf.TempError as error:
                self.nameless = str(error)
        return kept

    def check0(self, spf: str, recursion: int) -> Any:
        """As pyspf, and notes how deep."""
        before, self._depth = self._depth, recursion
        try:
            return super().check0(spf, recursion)
        finally:
            self._depth = before

    def get_explanation(self, spec: str) -> str | None:
        """The text at ``spec``; its questions are not needed for a verdict, and those of included records not at all."""
        if self._depth:
            return None
        self._explaining = True
        try:
            explanation = super().get_explanation(spec)
            return explanation if explanation is None else str(explanation)
        finally:
            self._explaining = False

    # --- terms ------------------------------------------------------------------------------------------------------

    def expand(self, s: str, stripdot: bool = True) -> str:
        """As pyspf, and notes what the verdict depends on."""
        if "%" not in s:
            return s[:-1] if stripdot and s.endswith(".") else s
        if _PERSONAL.search(s):
            if self._explaining:
                self.explained_to_one = True
            else:
                self.personal = True
        return str(super().expand(s, stripdot))

    def validate_mechanism(self, mech: str) -> Any:
        """As pyspf; terms that mean the same in every run, and those of addresses are most, are taken apart once."""
        if plain := _IP4.fullmatch(mech):
            # A record may list hundreds of these, and this is a tenth of the work.
            sign, address, length = plain.groups()
            return mech, "ip4", address, int(length or 32), spf.RESULTS[sign or "+"]
        if not _ADDRESS_TERM.match(mech):
            return super().validate_mechanism(mech)
        parsed = self._memo.terms.get(mech)
        if parsed is None:
            parsed = self._memo.terms[mech] = super().validate_mechanism(mech)
        return parsed

    def cidrmatch(self, ipaddrs: list[str], n: int) -> bool:
        """As pyspf, a tenth of the work."""
        family, shift = self._family, self.cidrmax - n
        network = int(self.ipaddr) >> shift
        for address in ipaddrs:
            try:
                number = int.from_bytes(socket.inet_pton(family, address), "big")
            except OSError:
                raise spf.PermError("no IP address", address) from None
            if number >> shift == network:
                return True
        return False


def run(claim: Claim, receiver: str, known: Mapping[Question, Found], memo: Memo) -> Outcome:
    """Evaluate ``claim`` with what is ``known``; it never raises."""
    one: _Run | None = None
    try:
        one = _Run(claim, receiver, known, memo)
        result, _, text = one.check()
    except _Enough:
        assert one is not None
        return Outcome(tuple(one.open_questions))
    # Whatever pyspf stumbles over in a stranger's record: the record is at fault, and the mail goes on.
    except Exception as error:  # noqa: BLE001
        if one is not None and one.open_questions:
            return Outcome(tuple(one.open_questions))
        return Outcome((), PERMERROR, problem=f"the record cannot be evaluated: {type(error).__name__}")
    if one.open_questions:
        return Outcome(tuple(one.open_questions))
    problem = str(getattr(one, "prob", "")) if result in (PERMERROR, TEMPERROR) else ""
    if problem and one.mech:
        problem = f"{problem}: {one.mech[-1]}"
    if result in (FAIL, SOFTFAIL) and one.nameless:
        # RFC 7208 5.5 goes on as if it did not match. Whether it was the client's zone or the way there, nobody can tell,
        # and trouble of the DNS must not refuse.
        return Outcome((), TEMPERROR, problem=one.nameless)
    explained = result == FAIL and text != spf.EXPLANATIONS[FAIL]
    return Outcome(
        (),
        result,
        one.mechanism or "",
        text if explained else "",
        problem,
        tuple(one.open_explanations) if result == FAIL else (),
        one.personal or (explained and one.explained_to_one),
        one.ttl,
    )


def question_name(name: str) -> str:
    """``name``, which records of strangers made, as the resolver is asked for it; empty: no name that there could be.

    One that is too long loses labels from the left (RFC 7208 7.3). A local part with other characters than ASCII matches
    nothing (RFC 8616 4).
    """
    name = name.removesuffix(".").lower()
    while len(name) > 253:
        _, dot, name = name.partition(".")
        if not dot:
            return ""
    if not name.isascii() or not name.isprintable():
        return ""
    if not all(0 < len(label) < 64 for label in name.split(".")):
        return ""
    return name
