"""``policyctl ask``: sends one request to the running daemon, as Postfix would, and shows the answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence

import click

from policyd.answer import escape
from policyd.cli.common import Session, Unreachable, did_you_mean, json_option, pass_session
from policyd.errors import UserError
from policyd.request import ASKED_BY_HAND, STAGES

#: Short names for what is typed most.
ALIASES = {
    "user": "sasl_username",
    "client": "client_address",
    "stage": "protocol_state",
    "recipients": "recipient_count",
    "helo": "helo_name",
    "context": "policy_context",
}
MOST = 64 * 1024
#: What Postfix sends, up to 3.12 (SMTPD_POLICY_README).
ATTRIBUTES = (
    "request",
    "protocol_state",
    "protocol_name",
    "helo_name",
    "queue_id",
    "sender",
    "recipient",
    "recipient_count",
    "client_address",
    "client_name",
    "reverse_client_name",
    "instance",
    "sasl_method",
    "sasl_username",
    "sasl_sender",
    "size",
    "ccert_subject",
    "ccert_issuer",
    "ccert_fingerprint",
    "ccert_pubkey_fingerprint",
    "encryption_protocol",
    "encryption_cipher",
    "encryption_keysize",
    "etrn_domain",
    "stress",
    "client_port",
    "policy_context",
    "server_address",
    "server_port",
    "compatibility_level",
    "mail_version",
    "tls_sni",
)


def doubts(attributes: Mapping[str, str]) -> list[str]:
    """What in a request is most likely mistyped; policyd ignores what it does not know, as Postfix demands."""
    found = []
    for name in attributes:
        if name not in ATTRIBUTES:
            near = did_you_mean(name, [*ATTRIBUTES, *ALIASES]) or "; it is ignored"
            found.append(f"Postfix sends no attribute {escape(name, 40)!r}{near}")
    stage = attributes.get("protocol_state", "")
    if stage not in STAGES:
        near = did_you_mean(stage.upper(), STAGES, 0.5) or f"; there are {', '.join(STAGES)}"
        found.append(f"Postfix has no stage {escape(stage, 40)!r}{near}")
    return found


def attributes_of(arguments: Sequence[str]) -> dict[str, str]:
    """The request that ``arguments`` give: one file (``-``: stdin) in Postfix's form, or ``key=value`` each.

    What Postfix always sends is added when it is missing; with a user and no method, the login counts as made.

    :raises UserError: it is no request.
    """
    from policyd.errors import ProtocolError
    from policyd.wire import REQUEST_TYPE, parse_attributes

    if len(arguments) == 1 and "=" not in arguments[0]:
        with click.open_file(arguments[0], "rb") as file:
            text = (
                file.read(MOST + 1).replace(b"\r\n", b"\n").lstrip(b"\n").split(b"\n\n", 1)[0].rstrip(b"\n")
            )
        place = "stdin" if arguments[0] == "-" else escape(arguments[0])
    else:
        pairs = []
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if not equals or not name:
                raise click.UsageError(f"{argument!r} is no key=value", click.get_current_context())
            pairs.append(f"{ALIASES.get(name, name)}={value}")
        text, place = "\n".join(pairs).encode("utf-8", "surrogateescape"), "arguments"
    if not any(row.startswith(b"request=") for row in text.split(b"\n")):
        text = f"request={REQUEST_TYPE}\n".encode() + text
    try:
        given = parse_attributes(text)
    except ProtocolError as error:
        raise UserError(f"{place}: no policy request: {error}; write name=value, one a line") from None
    defaults = {
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "instance": f"{ASKED_BY_HAND}{time.time_ns():x}",
    }
    if given.get("sasl_username"):
        defaults["sasl_method"] = "plain"
    return defaults | given


def encoded(attributes: dict[str, str]) -> bytes:
    """The request as bytes."""
    pairs = "".join(f"{name}={value}\n" for name, value in attributes.items())
    return f"{pairs}\n".encode("utf-8", "surrogateescape")


def reachable_address(address: str) -> tuple[int, str | tuple[str, int]] | None:
    """Socket family and address to connect to for a listener's ``address``; ``None`` when it does not say."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, rest.split(":", 1)[0]
    host, port = "", ""
    if kind == "inet":
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
    elif kind in ("tcp", "tcp6"):
        # A Twisted endpoint string: tcp:10047:interface=127.0.0.1
        parts = rest.replace("\\:", "\0").split(":")
        port = parts[0].removeprefix("port=")
        named = [part.partition("=")[2] for part in parts[1:] if part.startswith("interface=")]
        host = named[0].replace("\0", ":") if named else "::" if kind == "tcp6" else ""
    if not port.isdigit():
        return None
    host = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, int(port))


def exchange(listeners: Sequence[str], request: bytes, timeout: float) -> tuple[str, str]:
    """Send ``request`` to the first listener that takes a connection: its address, and the answer's action.

    :raises Unreachable: none does.
    :raises UserError: it gave no answer.
    """
    tried = []
    for address in listeners:
        target = reachable_address(address)
        if target is None:
            tried.append(f"{address}: no address to connect to; name it with --to")
            continue
        with socket.socket(target[0], socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            try:
                sock.connect(target[1])
            except OSError as error:
                tried.append(f"{address}: {error.strerror or error}")
                continue
            return address, _answer(sock, request, address, timeout)
    raise Unreachable(f"policyd cannot be reached ({'; '.join(tried)}); does it run? See 'policyctl status'")


def _answer(sock: socket.socket, request: bytes, address: str, timeout: float) -> str:
    received = b""
    try:
        sock.sendall(request)
        while b"\n\n" not in received and len(received) < MOST:
            data = sock.recv(4096)
            if not data:
                break
            received += data
    except TimeoutError:
        raise UserError(f"{address} gave no answer within {timeout:g} s; see policyd's own log") from None
    except OSError as error:
        raise UserError(f"{address}: {error.strerror or error}; see policyd's own log") from None
    block, end, _ = received.partition(b"\n\n")
    if not end:
        raise UserError(f"{address} closed the connection without an answer; policyd's own log says why")
    name, _, action = block.decode("utf-8", "replace").partition("=")
    if name != "action":
        raise UserError(
            f"{address} answers {escape(name, 40)!r}, which is no policy service; check [server] listen"
        )
    return action


@click.command()
@click.argument("request", metavar="FILE | KEY=VALUE...", nargs=-1, required=True)
@click.option(
    "--to", metavar="ADDRESS", help="Ask there (inet:127.0.0.1:10047, unix:/path), not the first listener."
)
@json_option
@pass_session
def ask(session: Session, request: tuple[str, ...], to: str | None) -> None:
    """Send one request to the running daemon and show its answer.

    FILE holds a request as Postfix sends it (- is stdin). Short names: user, client, stage, recipients, helo, context.
    The stage is RCPT unless said otherwise; at END-OF-MESSAGE a message that passes is counted like any other.
    'policyctl try' counts nothing.
    """
    attributes = attributes_of(request)
    for doubt in doubts(attributes):
        session.warn(doubt)
    if to is not None and reachable_address(to) is None:
        raise click.UsageError(
            f"{to!r} is no address; write inet:127.0.0.1:10047 or unix:/path", click.get_current_context()
        )
    # Where a broken file has its listener is not guessed: another policyd may answer there.
    config = session.sound_config if to is None else session.config
    addresses = [to] if to is not None else [listener.address for listener in config.server.listen]
    timeout = config.server.deadline / 1000 + 2
    address, action = exchange(addresses, encoded(attributes), timeout)
    instance = attributes["instance"]
    session.done(
        {"listener": address, "action": action, "stage": attributes["protocol_state"], "instance": instance},
        f"action={escape(action, 2000)}",
        f"asked on {escape(address)} at {escape(attributes['protocol_state'])}; 'policyctl explain {escape(instance)}' says why",
    )
