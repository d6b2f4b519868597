"""The [[alert]] sections: each read, named, and what must agree between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from urllib.parse import urlsplit

from policyd.config.reader import keys_of, read_table, refuse_unknown
from policyd.config.sections import AlertSection
from policyd.config.source import Document


def read_channels(document: Document, homes: Mapping[str, str]) -> tuple[AlertSection, ...]:
    """The channels that are sound; the document holds the problems of the others.

    :param homes: the section of keys that stand elsewhere.
    """
    tables = document.data.get("alert", [])
    if not isinstance(tables, list):
        document.complain(("alert",), "must be written with two brackets, [[alert]]")
        return ()
    channels: list[AlertSection] = []
    places: dict[str, str] = {}
    for index, table in enumerate(tables):
        path = ("alert", index)
        if not isinstance(table, dict):
            document.complain(path, "must be a table; write [[alert]] on a line of its own")
            continue
        known = keys_of(AlertSection)
        refuse_unknown(document, path, table, known, {k: v for k, v in homes.items() if k not in known})
        read = read_table(document, AlertSection, path, table)
        if read is None:
            continue
        channel = dataclasses.replace(read, name=read.name or channel_name(read.to))
        if channel.secret_file and channel.kind not in ("https", "http"):
            document.complain((*path, "secret_file"), f"means nothing for {channel.name}; remove it")
        if channel.name in places:
            text = f"a channel {channel.name!r} stands at {places[channel.name]} already; give one of them a name of its own"
            document.complain((*path, "name"), f'{text}, as name = "second"')
        places.setdefault(channel.name, document.place(path))
        channels.append(channel)
    return tuple(channels)


def channel_name(to: str) -> str:
    """What a channel is called that has no name: never more of a URL than its host, for the rest may be secret."""
    kind, _, rest = to.partition(":")
    if kind.lower() in ("https", "http"):
        return urlsplit(to).hostname or kind
    return f"{kind}:{rest}" if rest else kind
