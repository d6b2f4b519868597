"""An alert as mail, handed to the local Postfix by SMTP: a sandboxed service cannot use sendmail's setgid postdrop."""

from __future__ import annotations

import secrets
import smtplib
from email.message import EmailMessage
from email.utils import formatdate

from policyd.alert import Alert
from policyd.alerts import Guard, Sent
from policyd.alerts.text import words

#: The whole session is over after so many times the time-out of one step.
STEPS = 3


class OwnSessions:
    """The names by which policyd itself greets the mail server at this moment; what is asked about them is not checked.

    Each is made up for one session, of 128 random bits, and means nothing after it: nobody else can use one in time.
    """

    def __init__(self) -> None:
        self._open: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._open)

    def __contains__(self, helo_name: str) -> bool:
        return helo_name in self._open

    def begin(self, host: str) -> str:
        """A name for a session that begins; from any thread."""
        name = f"policyd-alert-{secrets.token_hex(16)}.{host}"
        self._open.add(name)
        return name

    def end(self, name: str) -> None:
        """The session is over; from any thread."""
        self._open.discard(name)


class Mail:
    """Sends to one address."""

    def __init__(
        self, to: str, smtp: tuple[str, int], sender: str, host: str, timeout: float, own: OwnSessions
    ) -> None:
        """
        :param smtp: host and port.
        :param sender: for the header From; the envelope has the null sender, so nothing ever bounces back to it.
        :param timeout: of one step, s.
        """
        self._to, self._smtp, self._sender, self._host = to, smtp, sender, host
        self._timeout, self._own = timeout, own

    def __call__(self, alert: Alert) -> Sent:
        """Try once."""
        greeting = self._own.begin(self._host)
        smtp = smtplib.SMTP(timeout=self._timeout, local_hostname=greeting)
        # A server that drips a byte now and then keeps every time-out of a step.
        guard = Guard(STEPS * self._timeout, lambda: smtp.sock)
        try:
            code, reply = smtp.connect(*self._smtp)
            if code != 220:
                return Sent(_said(code, reply))
            smtp.send_message(self.message(alert), "<>", [self._to])
        except smtplib.SMTPRecipientsRefused as error:
            return Sent(_said(*next(iter(error.recipients.values()))))
        except smtplib.SMTPResponseException as error:
            return Sent(_said(error.smtp_code, error.smtp_error))
        except (OSError, smtplib.SMTPException) as error:
            late = guard.fired or isinstance(error, TimeoutError)
            return Sent(f"{self._smtp[0]}:{self._smtp[1]}: {'no answer in time' if late else error}")
        finally:
            self._own.end(greeting)
            guard.cancel()
            # Without QUIT, which could take its time: what was accepted is accepted.
            smtp.close()
        return Sent()

    def message(self, alert: Alert) -> EmailMessage:
        """The mail, the same at each attempt but for its date."""
        said = words(alert)
        mail = EmailMessage()
        mail["From"] = self._sender
        mail["To"] = self._to
        mail["Subject"] = f"[policyd {self._host}] {said.title}"[:200]
        mail["Date"] = formatdate(localtime=True)
        mail["Message-ID"] = f"<policyd.{alert.uid}@{self._host}>"
        # RFC 3834: nobody's holiday message answers it.
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Policyd-Kind"] = alert.kind
        # What belongs together stands together in a mail program.
        thread = f"<policyd.{alert.kind.replace('%', '')}.{_thread(alert.subject)}@{self._host}>"
        mail["References"] = thread
        mail.set_content(said.text() + "\n")
        return mail


def _thread(subject: str) -> str:
    return subject.encode("utf-8", "backslashreplace").hex()[:40] or "all"


def _said(code: int, reply: bytes | str) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    return f"the mail server answered {code} {' '.join(text.split())}"
