"""SPF (RFC 7208) as a check asks it, and what comes back; who evaluates the records is policyd.dns.spf."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from policyd.match import domain_key, fold

PASS, FAIL, SOFTFAIL, NEUTRAL, NONE, TEMPERROR, PERMERROR = RESULTS = (
    "pass",
    "fail",
    "softfail",
    "neutral",
    "none",
    "temperror",
    "permerror",
)
#: The two identities (RFC 7208 2.3, 2.4); which of them was judged goes along with each result.
HELO, MAIL_FROM = "helo", "mailfrom"

#: Most questions that one mail may cost (RFC 7208 4.6.4 alone would allow more than 100), and the part of them that its
#: HELO identity may take: such a record is short, or somebody plays.
MOST_QUESTIONS = 30
HELO_QUESTIONS = 8

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class Claim(NamedTuple):
    """What a client says it is, and what is to be judged."""

    #: The client's address, as text.
    ip: str
    #: ``HELO`` or ``MAIL_FROM``.
    identity: str
    #: Before the @; ``postmaster`` where there is none (RFC 7208 4.3).
    local: str
    #: A-labels, lower case.
    domain: str
    #: What the client said in HELO, for macros.
    helo: str


class SpfResult(NamedTuple):
    """What the records say of one claim."""

    #: One of ``RESULTS``.
    result: str
    identity: str = MAIL_FROM
    domain: str = ""
    #: The term of the record that decided; text of whoever keeps the domain.
    mechanism: str = ""
    #: What the domain's owner tells those who are refused; hostile text, not escaped.
    explanation: str = ""
    #: Why there is no verdict, for permerror and temperror; may hold text of others.
    problem: str = ""
    #: Questions that it cost now; 0 when the result was remembered.
    questions: int = 0


class Verdicts(NamedTuple):
    """What one mail came to."""

    mail_from: SpfResult
    #: ``None``: it was not asked for.
    helo: SpfResult | None = None


class SpfEvaluator(Protocol):
    """The one evaluator that all checks share."""

    #: This host's name, for headers.
    receiver: str

    async def evaluate(self, mail_from: Claim, helo: Claim | None, due: float) -> Verdicts:
        """The results by ``due`` (``time.monotonic()``, s) at the latest, both found out side by side; it never raises.

        What cannot be found out in time, or with the questions that a mail may cost, is ``temperror``. What is remembered
        is answered without waiting.
        """


class NoSpf:
    """Knows nothing: where no DNS is to be had."""

    receiver = "localhost"

    async def evaluate(self, mail_from: Claim, helo: Claim | None, due: float) -> Verdicts:
        """See :class:`SpfEvaluator`."""
        return Verdicts(SpfResult(TEMPERROR, MAIL_FROM, mail_from.domain, problem="no resolver"))


def mail_from_claim(ip: str, sender: str, helo: str) -> Claim:
    """The claim of MAIL FROM; that of the null sender is postmaster's at the HELO name (RFC 7208 2.4).

    The domain is empty when it is no name that could have a record: the result is ``none`` then (RFC 7208 4.3).
    """
    if not sender or sender == "<>":
        return Claim(ip, MAIL_FROM, "postmaster", policy_domain(helo), helo)
    local, _, domain = sender.rpartition("@")
    return Claim(ip, MAIL_FROM, local or "postmaster", policy_domain(domain), helo)


def helo_claim(ip: str, helo: str) -> Claim:
    """The claim of HELO; its domain is empty for an address literal and for a name without a dot."""
    return Claim(ip, HELO, "postmaster", policy_domain(helo), helo)


def policy_domain(name: str) -> str:
    """``name`` as A-labels in lower case when it is a name of several labels that the DNS could hold, else nothing."""
    name = domain_key(fold(name))
    labels = name.split(".")
    if len(labels) < 2 or len(name) > 253 or labels[-1].isdigit():
        return ""
    for label in labels:
        if not 0 < len(label) < 64 or not _NAME_CHARACTERS.issuperset(label):
            return ""
    return name
