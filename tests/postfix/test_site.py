"""[site] as Postfix knows it: domains and networks, in lists, files and tables; what cannot be listed is said."""

from __future__ import annotations

from pathlib import Path

from policyd.checks import options_of
from policyd.cli.postfix import _merged
from policyd.config import load
from policyd.postfix.site import ourselves
from tests.postfix.made import settings


def test_lists_files_and_tables_are_read(tmp_path: Path) -> None:
    """mydestination, virtual and relay domains, mynetworks with brackets, myorigin in a file."""
    (tmp_path / "domains").write_text("# ours\nexample.net\n\nexample.com  # another\n")
    (tmp_path / "table").write_text("shop.example anything\nalice@shop.example x\n")
    (tmp_path / "mailname").write_text("Mail.Example.ORG\n")
    found = ourselves(
        settings(
            {
                "mydestination": "Example.org, localhost",
                "virtual_mailbox_domains": f"texthash:{tmp_path}/table {tmp_path}/domains",
                "relay_domains": "mysql:/etc/postfix/relay.cf, inline:{ {partner.example=x} }",
                "mynetworks": "127.0.0.0/8 [::1]/128 [fd00::7]/128 10.1.2.3/24 cidr:/nowhere",
                "myorigin": f"{tmp_path}/mailname",
            }
        )
    )
    assert found.domains == (
        *("example.org", "localhost", "shop.example", "example.net", "example.com", "partner.example"),
    )
    assert found.networks == ("127.0.0.0/8", "::1/128", "fd00::7/128", "10.1.2.0/24")
    assert found.default_domain == "mail.example.org"
    (note,) = found.notes
    assert note.startswith("relay_domains: mysql:/etc/postfix/relay.cf cannot be listed")


def test_what_the_admin_wrote_stays_and_the_placeholder_goes(tmp_path: Path) -> None:
    """A second run finds nothing to add; a domain written by hand is not lost."""

    def merged(site: str) -> dict[str, str | list[str]]:
        (tmp_path / "policyd.toml").write_text(f"[site]\n{site}")
        config = load(tmp_path / "policyd.toml", options_of)
        return _merged(config, ("a.example", "b.example"), ("127.0.0.0/8", "10.0.0.0/8"), "a.example")

    assert merged(
        'domains = ["example.org"]\ndefault_domain = "example.org"\nnetworks = ["127.0.0.0/8"]\n'
    ) == {
        "domains": ["a.example", "b.example"],
        "networks": ["127.0.0.0/8", "10.0.0.0/8"],
        "default_domain": "a.example",
    }
    own = 'domains = ["z.example", "a.example", "b.example"]\ndefault_domain = "z.example"\n'
    own += 'networks = ["127.0.0.0/8", "10.0.0.0/7"]\n'
    assert merged(own) == {}
