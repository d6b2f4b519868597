"""A login may send only as an address that is its own: itself, by choice its domain, or what the admin allowed it.

It looks at the envelope sender of mail with a SASL login; who has none, a client of one's own network or a certificate, is not
asked. Own is the login as an address, with an extension (``alice+news@``), and with ``own_domain`` each address of its
domain. More is allowed with ``policyctl sender allow USER ADDRESS|@DOMAIN``, which holds from the next request on. What
stands in the header From: is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from policyd.answer import clip, escape, make_answer
from policyd.checks import Context
from policyd.inquiry import Inquiry
from policyd.match import address_key, fold
from policyd.opinion import Opinion
from policyd.request import END_OF_MESSAGE, MX, RCPT, Request
from policyd.settings import Disagreement, boolean, fill, list_of, one_of, setting, string, template
from policyd.steering import Steering


def _login(value: Any) -> str:
    """A login, or @domain for all of a domain."""
    text = fold(string(value).strip())
    if not text.isprintable() or " " in text or len(text) > 320 or "@" not in text or text.endswith("@"):
        raise ValueError(
            f"{value!r} is no login; write alice@example.org, or @example.org for all of a domain"
        )
    return address_key(text)


def _extension(value: Any) -> str:
    """The characters of Postfix's recipient_delimiter."""
    text = string(value)
    if not set(text) <= set("+-_=#!~%") or len(text) > 8:
        raise ValueError(
            f'{value!r} begins no extension; write "+", or what recipient_delimiter of Postfix is'
        )
    return text


@dataclass(frozen=True)
class Options:
    """The section of a ``sender_login`` check."""

    own_domain: bool = setting(
        boolean, False, help="Whether a login may send as every address of its own domain."
    )
    extension: str = setting(
        _extension,
        "+",
        help="Characters that begin an extension of an address, as in alice+news@; empty: none.",
    )
    null_sender: str = setting(
        one_of("allow", "refuse"), "allow", help="Whether a login may send with the null sender <>."
    )
    except_users: frozenset[str] = setting(
        lambda value: frozenset(list_of(_login)(value)),
        frozenset(),
        help="Logins, or @domain for all of a domain, that may send as anybody.",
    )
    text: str = setting(
        template("user", "sender", "ref"),
        "Sender address is not yours; login {user} may not send as {sender}. ref {ref}",
        help="The text of the refusal.",
    )


class Check:
    """Compares the envelope sender with the login."""

    #: Also at the end of the message: a submission service may have restrictions for recipients of its own, without policyd.
    stages: ClassVar[frozenset[str]] = frozenset({RCPT, END_OF_MESSAGE})
    steadfast: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, frozenset[str]]] = {}

    def __init__(self, options: Options, context: Context) -> None:
        if context.direction == MX:
            raise Disagreement(
                "for", "looks at logins only, so for = 'mx' does nothing; write for = 'submission'"
            )
        self._options = options

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """The refusal of a sender that is not the login's, or ``None``."""
        account, options = request.account, self._options
        if not (request.sasl_method and request.sasl_username):
            return None
        sender, domain = request.sender_key, request.sender_domain
        if sender == account or self._excepted(request):
            return None
        if not sender:
            if options.null_sender == "allow":
                return None
        else:
            if options.own_domain and domain and domain == request.user_domain:
                return None
            bare = self._bare(sender)
            if bare == account or steering.may_send(account, bare, "", now):
                return None
        if steering.may_send(account, sender, domain, now):
            return None
        values = {"user": escape(account, 64), "sender": escape(request.sender, 64) or "<>", "ref": "{ref}"}
        answer = make_answer("553", clip("5.7.1 " + fill(options.text, values)))
        return Opinion(answer, f"sender {escape(sender, 100) or '<>'} is not the login's")

    def _excepted(self, request: Request) -> bool:
        excepted = self._options.except_users
        return bool(excepted) and (request.account in excepted or "@" + request.user_domain in excepted)

    def _bare(self, sender: str) -> str:
        """``sender`` without its extension."""
        local, at, domain = sender.rpartition("@")
        places = [place for ch in self._options.extension if (place := local.find(ch, 1)) > 0]
        return f"{local[: min(places)]}{at}{domain}" if places else sender
