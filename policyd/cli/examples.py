"""Requests made up to ask what would become of such mail: an account's or a client's usual one, and one that fits a ban."""

from __future__ import annotations

import sqlite3

from policyd.request import END_OF_MESSAGE, Request, Site
from policyd.steering import client_network
from policyd.store import read

#: A small message, per unit.
SMALL = {"messages": 1, "recipients": 1, "bytes": 1000}


def typical(
    site: Site, connection: sqlite3.Connection, account: str, stage: str = END_OF_MESSAGE, sender: str = ""
) -> tuple[Request, read.Logged | None]:
    """A small message of ``account``, sent as its last one was, and the newest decision on a request of it.

    :param sender: instead of that one's.
    """
    rows = read.decisions(connection, read.Wanted(user=account), 20)
    last = next((row for row in rows if row.sender), rows[0] if rows else None)
    attributes = {
        "protocol_state": stage,
        "sender": sender or (last.sender if last is not None else account if "@" in account else ""),
        "client_address": last.client if last is not None else "",
        "client_name": last.client_name if last is not None else "",
        "helo_name": last.helo if last is not None else "",
        "policy_context": last.context if last is not None else "",
        "recipient_count": str(SMALL["recipients"]),
        "size": str(SMALL["bytes"]),
        "sasl_method": "plain",
        "sasl_username": account,
    }
    request = site.request(attributes, last.listener if last is not None else "", "submission")
    # Accounts that are no logins (cert:, client:) go by no attribute of a single name.
    return request._replace(account=account), rows[0] if rows else None


def from_client(
    site: Site, connection: sqlite3.Connection, address: str
) -> tuple[Request, read.Logged | None]:
    """A small message from the client ``address``, as its last one was, and the newest decision on a request of it."""
    rows = read.decisions(connection, read.Wanted(client=address), 20)
    last = next((row for row in rows if row.sender and not row.user), rows[0] if rows else None)
    # Greylisting knows a client by its mail: sender and recipient belong together.
    recipients = (row.recipient for row in rows if row.recipient and last and row.sender == last.sender)
    attributes = {
        "protocol_state": END_OF_MESSAGE,
        # A name that nobody has (RFC 2606): what is found out is about the client.
        "sender": last.sender if last is not None and last.sender else "x@client.invalid",
        "recipient": next(recipients, ""),
        "client_address": address,
        "client_name": last.client_name if last is not None else "",
        "helo_name": last.helo if last is not None else "",
        "recipient_count": str(SMALL["recipients"]),
        "size": str(SMALL["bytes"]),
    }
    return site.request(attributes, last.listener if last is not None else ""), rows[0] if rows else None


def fitting(site: Site, kind: str, value: str, direction: str) -> Request:
    """A request for which a ban of this kind (not ``user``) and value fits, and which says nothing else."""
    attributes = {"protocol_state": "MAIL"}
    if kind == "sender":
        attributes["sender"] = value
    elif kind == "domain":
        attributes["sender"] = f"x@x{value}" if value.startswith(".") else f"x@{value}"
    elif (network := client_network(value)) is not None:
        attributes["client_address"] = str(network.network_address)
    else:
        attributes["client_name"] = f"x{value}" if value.startswith(".") else value
    return site.request(attributes, "", direction)
