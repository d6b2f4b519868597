"""One request as policyd sees it: Postfix's attributes, and whom it is about.

Attribute names and meanings: Postfix SMTPD_POLICY_README. :class:`Site` turns attributes into a frozen
:class:`Request`; after that nobody looks at raw attributes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from policyd.match import NetworkSet, address_key, client_key, domain_of, fold
from policyd.units import MAX_AMOUNT

#: Directions of mail.
SUBMISSION, MX = "submission", "mx"

#: Stages (``protocol_state``) with the number under which they are stored.
STAGES = {
    name: number
    for number, name in enumerate(
        ("CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN"), start=1
    )
}
OTHER_STAGE = 0
#: Where MAIL FROM came before.
STAGES_WITH_SENDER = frozenset({"MAIL", "RCPT", "DATA", "END-OF-MESSAGE"})
#: What the instance of a request begins with that ``policyctl ask`` made up: Postfix did not ask.
ASKED_BY_HAND = "policyctl."
RCPT = "RCPT"
DATA = "DATA"
END_OF_MESSAGE = "END-OF-MESSAGE"

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: Longest value that is kept of an attribute, in characters: RFC 5321 4.5.3.1 allows 256 octets for a path.
MAX_KEPT = 512


class Request(NamedTuple):
    """A policy request, normalised. Text is bindable and bounded; an absent value is ``""`` or 0."""

    # First what is kept in the decision's row, in the order of its columns (schema/decision.sql).
    stage: str
    direction: str
    listener: str
    policy_context: str
    instance: str
    queue_id: str
    #: Whose mail this is, when it is submission: the login, ``cert:…`` or ``client:…``; else ``""``.
    account: str
    client_address: str
    client_name: str
    helo_name: str
    sender: str
    recipient: str
    recipient_count: int
    #: Octets; before END-OF-MESSAGE only what the client claimed (RFC 1870).
    size: int
    reverse_client_name: str
    sasl_method: str
    sasl_username: str
    stress: bool
    #: Folded forms, for matching.
    sender_key: str
    sender_domain: str
    recipient_key: str
    recipient_domain: str
    #: Submission from an own sender (or the null sender) to an own recipient; only where one recipient is known.
    #: Never mail from outside: there the sender is whatever the client says.
    internal: bool

    @property
    def is_submission(self) -> bool:
        """Whether the mail comes from one of our own."""
        return self.direction == SUBMISSION

    @property
    def login(self) -> str:
        """The account, when it is a SASL login; empty for a certificate, an own network, or mail from outside."""
        if not (self.sasl_username and self.sasl_method):
            return ""
        account = self.account
        # A login that is nothing but blanks.
        return "" if account.startswith("client:") else account

    @property
    def knows_sender(self) -> bool:
        """Whether the sender was given: an empty one is the null sender then, not one still to come."""
        return bool(self.sender_key) or self.stage in STAGES_WITH_SENDER

    @property
    def recipients(self) -> int:
        """Recipients this request stands for: the real count from DATA on, one before."""
        return max(1, self.recipient_count)

    @property
    def user_domain(self) -> str:
        """The domain of the account; empty when the account has none."""
        return domain_of(self.account)

    @property
    def client_net(self) -> str:
        """The client as it is counted: the address, or its /64 for IPv6."""
        return client_key(self.client_address)


#: How many fields of a request, from the first, its decision's row has.
WRITTEN = Request._fields.index("size") + 1


class Attributes(NamedTuple):
    """What policyd keeps of the attributes of a request, as it came: absent ones are ``""``."""

    protocol_state: str = ""
    instance: str = ""
    queue_id: str = ""
    stress: str = ""
    sender: str = ""
    recipient: str = ""
    recipient_count: str = ""
    size: str = ""
    client_address: str = ""
    client_name: str = ""
    reverse_client_name: str = ""
    helo_name: str = ""
    sasl_method: str = ""
    sasl_username: str = ""
    policy_context: str = ""
    ccert_subject: str = ""
    ccert_fingerprint: str = ""
    ccert_pubkey_fingerprint: str = ""

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Attributes:
        """Those of ``attributes`` that are kept."""
        return cls._make(_PICK({**_ABSENT, **attributes}))


_ABSENT = dict.fromkeys(Attributes._fields, "")
_PICK: Callable[[Mapping[str, str]], tuple[str, ...]] = itemgetter(*Attributes._fields)

#: In ``[site] certificates``: each certificate that Postfix could verify.
ANY_VERIFIED = "any"
#: Longest text whose canonical form is remembered: with it, a peer that sends ever new ones gets no further than 5 MB.
_REMEMBERED = 256


@lru_cache(maxsize=4096)
def number(text: str) -> int:
    """A count that Postfix sent; what is no number counts as 0, what is too large as 2^53."""
    if not (text.isascii() and text.isdigit()):
        return 0
    return min(int(text), MAX_AMOUNT) if len(text) <= 16 else MAX_AMOUNT


def parsed_address(text: str) -> tuple[str, str]:
    """The canonical form of an address, and of its domain."""
    return _parsed_address(text) if len(text) <= _REMEMBERED else _parsed_address.__wrapped__(text)


@lru_cache(maxsize=4096)
def _parsed_address(text: str) -> tuple[str, str]:
    key = address_key(text)
    return key, domain_of(key)


@lru_cache(maxsize=4096)
def _login(name: str, default_domain: str) -> str:
    name = address_key(name.strip())
    return f"{name}@{default_domain}" if name and "@" not in name and default_domain else name


@dataclass(frozen=True)
class Site:
    """Who "we" are (``[site]``): decides the direction and the account of each request."""

    domains: frozenset[str] = frozenset()
    networks: NetworkSet = field(default_factory=NetworkSet)
    default_domain: str = ""
    #: ``policy_context`` values that mean submission.
    submission_contexts: frozenset[str] = frozenset({SUBMISSION})
    #: Fingerprints (folded) of the client certificates that are ours; :data:`ANY_VERIFIED` for every one that verifies.
    certificates: frozenset[str] = frozenset()

    def login(self, name: str) -> str:
        """The canonical form of a SASL login: lower case, NFC, with the default domain when it has none."""
        return _login(name, self.default_domain)

    def request(
        self, attributes: Mapping[str, str], listener: str = "", listener_direction: str = ""
    ) -> Request:
        """The :class:`Request` that ``attributes`` describe, received on the listener labelled ``listener``."""
        return self.understand(Attributes.of(attributes), listener, listener_direction)

    def understand(self, given: Attributes, listener: str = "", listener_direction: str = "") -> Request:
        """The same, of attributes that were picked out."""
        sender, recipient = given[4], given[5]
        # Taken before anything is cut: a local part of 600 octets must not hide the domain behind it.
        sender_key, sender_domain = parsed_address(sender)
        recipient_key, recipient_domain = parsed_address(recipient)
        if max(map(len, given)) > MAX_KEPT:
            given = Attributes._make([value[:MAX_KEPT] for value in given])
            sender_key, sender_domain = sender_key[:MAX_KEPT], sender_domain[:MAX_KEPT]
            recipient_key, recipient_domain = recipient_key[:MAX_KEPT], recipient_domain[:MAX_KEPT]
        (
            stage,
            instance,
            queue_id,
            stress,
            sender,
            recipient,
            recipient_count,
            size,
            client_address,
            client_name,
            reverse_client_name,
            helo_name,
            sasl_method,
            sasl_username,
            context,
            subject,
            fingerprint,
            key_fingerprint,
        ) = given
        account = ""
        certificates = self.certificates
        # Without a method the name is not authenticated: anybody who reaches the socket could claim it.
        if sasl_method and sasl_username:
            direction = SUBMISSION
            account = _login(sasl_username, self.default_domain) or "client:" + client_key(client_address)
        elif certificates and (
            (subject and ANY_VERIFIED in certificates)
            or fold(key_fingerprint) in certificates
            or fold(fingerprint) in certificates
        ):
            direction = SUBMISSION
            account = "cert:" + fold(key_fingerprint or fingerprint)
        elif (
            context in self.submission_contexts
            or listener_direction == SUBMISSION
            or client_address in self.networks
        ):
            direction = SUBMISSION
            # Postfix sends the subject only for a verified certificate; the fingerprint it sends always.
            account = (
                "cert:" + fold(key_fingerprint or fingerprint)
                if subject
                else "client:" + (client_key(client_address) or "unknown")
            )
        else:
            direction = MX
        domains = self.domains
        return _new(
            Request,
            (
                stage[:32],
                direction,
                listener,
                context,
                instance,
                queue_id,
                account,
                client_address,
                client_name,
                helo_name,
                sender,
                recipient,
                number(recipient_count),
                number(size),
                reverse_client_name,
                sasl_method,
                sasl_username,
                stress == "yes",
                sender_key,
                sender_domain,
                recipient_key,
                recipient_domain,
                direction == SUBMISSION
                and recipient_domain in domains
                and (not sender_key or sender_domain in domains),
            ),
        )
