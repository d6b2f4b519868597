"""An alert to a webhook: one HTTPS POST of JSON, signed as Standard Webhooks has it (webhook-id, -timestamp, -signature)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from policyd import __version__
from policyd.alert import Alert
from policyd.alerts import Guard, Sent
from policyd.alerts.payload import encoded
from policyd.units import HOUR

#: How much of an answer that is no success is read, for the error, octets.
MOST_READ = 2_000
_GONE = 410


class Webhook:
    """Posts to one URL."""

    def __init__(
        self,
        url: str,
        key: Callable[[], bytes],
        host: str,
        timeout: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """
        :param key: reads the key it is signed with, empty: it is not signed; :class:`OSError` or :class:`ValueError`.
        :param timeout: of the whole of it, s.
        """
        self._url: SplitResult = urlsplit(url)
        self._key, self._host, self._timeout, self._wall = key, host, timeout, wall
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None

    def __call__(self, alert: Alert) -> Sent:
        """Try once."""
        body = encoded(alert, self._host)
        try:
            headers = self.headers(alert.uid, body)
        except (OSError, ValueError) as error:
            return Sent(f"its secret cannot be read: {error}")
        connection = self._connection()
        # The time-out of a socket is that of one step: a server that drips keeps it for ever.
        guard = Guard(self._timeout, lambda: connection.sock)
        try:
            path = self._url.path or "/"
            connection.request(
                "POST", f"{path}?{self._url.query}" if self._url.query else path, body, headers
            )
            answer = connection.getresponse()
            if 200 <= answer.status < 300:
                return Sent()
            text = answer.read(MOST_READ).decode("utf-8", "replace")
            said = " ".join(f"answered {answer.status} {answer.reason}: {text}".split())[:300]
            return Sent(said, answer.status == _GONE, _retry_after(answer.getheader("Retry-After")))
        except (OSError, http.client.HTTPException) as error:
            late = guard.fired or isinstance(error, TimeoutError)
            return Sent(
                f"no answer within {self._timeout:g} s" if late else f"{type(error).__name__}: {error}"[:300]
            )
        finally:
            guard.cancel()
            connection.close()

    def headers(self, uid: str, body: bytes) -> dict[str, str]:
        """The headers of the request.

        :raises OSError: the key cannot be read.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"policyd/{__version__}",
            "webhook-id": uid,
            "webhook-timestamp": str(int(self._wall())),
            "Connection": "close",
        }
        key = self._key()
        if key:
            signed = b".".join((uid.encode(), headers["webhook-timestamp"].encode(), body))
            digest = hmac.new(key, signed, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers

    def _connection(self) -> http.client.HTTPConnection:
        name, port = self._url.hostname or "", self._url.port
        if self._tls is not None:
            return http.client.HTTPSConnection(name, port, timeout=self._timeout, context=self._tls)
        return http.client.HTTPConnection(name, port, timeout=self._timeout)


def read_key(text: str) -> bytes:
    """The key in a secret as Standard Webhooks writes it: ``whsec_`` and base64.

    :raises ValueError: it is no such secret, or too short to be one.
    """
    try:
        key = base64.b64decode(text.strip().removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ValueError(
            "it holds no secret of 24 to 64 bytes in base64 (printf whsec_; openssl rand -base64 32)"
        )
    return key


def _retry_after(value: str | None) -> int:
    """Seconds, as servers under load write it; a date is as good as nothing."""
    return (
        min(int(value) * 1000, HOUR)
        if value and value.isascii() and value.isdigit() and len(value) < 9
        else 0
    )
