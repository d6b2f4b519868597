"""An alert by mail through a real Postfix that asks policyd about it: it arrives, whatever policyd's own checks say of others."""

from __future__ import annotations

import re
from pathlib import Path

from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, contrib, stock_master_cf
from tests.system.waiting import wait_for

POLICY = """
[site]
domains = ["example.org"]
networks = ["127.0.0.0/8"]
default_domain = "example.org"
[server]
listen = ["unix:{socket}"]
[alerts]
smtp = "127.0.0.1:{port}"
[[alert]]
to = "mailto:postmaster@example.org"
[[check]]
use = "allow"
[[check]]
use = "bans"
[[check]]
use = "quota"
per = "client"
limits = ["1 messages per 1d"]
"""


def test_an_alert_by_mail_is_not_subject_to_policyds_own_checks(tmp_path: Path) -> None:
    """The client, the recipient and the sender's domain are banned and the client's limit is none: others at the same address
    are refused, the alert is delivered, uncounted, and explained in the decisions. A name like policyd's own helps nobody."""
    with Postfix(contrib("main.cf"), stock_master_cf() + contrib("master.cf")) as postfix:
        policy = POLICY.format(socket=postfix.queue / SOCKET, port=postfix.ports["smtp"])
        with Policyd(tmp_path, policy) as policyd:
            policyd.ctl("ban", "client", "127.0.0.1", "--force")
            policyd.ctl("ban", "domain", "example.org", "--force")
            with postfix.connect() as client:
                assert re.match(r"[45]5\d ", client.send("alice@example.net", "postmaster@example.org"))
            assert "sent" in policyd.ctl("alert", "test")
            (queue_id,) = re.findall(r"(\w+): message-id=<policyd\.[0-9a-f]{20}@", postfix.log)
            assert postfix.delivered([queue_id]) == 1
            rows = policyd.query('SELECT stage, action, reason, helo FROM decision WHERE "by" = ?', "alerts")
            assert {row[1] for row in rows} == {"DUNNO"}
            assert {row[0] for row in rows} >= {"RCPT"}
            (name,) = {row[3] for row in rows}
            assert re.fullmatch(r"policyd-alert-[0-9a-f]{32}\..+", name)
            with postfix.connect() as client:
                client.smtp.ehlo(name)
                reply = client.send("", "postmaster@example.org")
                assert re.match(r"[45]5\d ", reply), f"a used name passed: {reply}"
            assert policyd.query("SELECT 1 FROM counter WHERE value LIKE '%127.0.0.1%'") == []
            wait_for(lambda: policyd.ctl("alert") == "no alert waits\n", policyd.told)


def test_postfix_itself_refuses(tmp_path: Path) -> None:
    """Where Postfix has reasons of its own, the alert waits and policyctl says what they are."""
    main_cf = (
        contrib("main.cf") + "\nsmtpd_client_restrictions = check_client_access inline:{127.0.0.1=REJECT}\n"
    )
    with Postfix(main_cf, stock_master_cf() + contrib("master.cf")) as postfix:
        policy = POLICY.format(socket=postfix.queue / SOCKET, port=postfix.ports["smtp"])
        with Policyd(tmp_path, policy) as policyd:
            printed = policyd.ctl("alert", "test", code=1)
            assert "the mail server answered 554" in printed
            assert "Access denied" in printed
