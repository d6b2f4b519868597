"""The other end of each channel, on loopback: a mail server, a webhook, and what each was told."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from email.policy import default
from typing import Any, Self, cast

from tests.ports import free_port


class MailServer:
    """Takes mail by SMTP, as far as a client of smtplib's needs it; a context manager.

    :param replies: what is answered instead of 250, by the command's first word: "RCPT", "DATA", "END" (of the message).
    """

    def __init__(self, replies: dict[str, str] | None = None) -> None:
        self.replies = replies if replies is not None else {}
        self.mails: list[Message] = []
        #: The lines of each session, without the message.
        self.lines: list[str] = []
        outer = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.say("220 sink ESMTP")
                while line := self.rfile.readline():
                    outer.lines.append(line.decode().strip())
                    word = line[:4].decode().upper()
                    usual = {"EHLO": "250 sink", "DATA": "354 go on", "QUIT": "221 bye"}.get(word, "250 ok")
                    reply = outer.replies.get(word, usual)
                    self.say(reply)
                    if word == "DATA" and reply.startswith("354"):
                        self.message()

            def message(self) -> None:
                data = b""
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    data += line[1:] if line.startswith(b".") else line
                reply = outer.replies.get("END", "250 ok")
                if reply.startswith("250"):
                    outer.mails.append(message_from_bytes(data, policy=default))
                self.say(reply)

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Session)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return cast("tuple[str, int]", self._server.server_address)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class WebServer:
    """A webhook; a context manager that can be entered again, at the same port.

    ``behave`` is called for each request, with its number from 0, and says the status, or 0: close without an answer.
    """

    def __init__(self, behave: Callable[[int], int] = lambda number: 204) -> None:
        self.behave = behave
        self.headers: dict[str, str] = {}
        self.answer_headers: dict[str, str] = {}
        self.body = b""
        #: The ids of all requests, and of those that were answered with success.
        self.asked: list[str] = []
        self.acknowledged: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.port = free_port()
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook?x=1"

    def __enter__(self) -> Self:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                uid = self.headers["webhook-id"]
                number = len(outer.asked)
                outer.asked.append(uid)
                outer.headers, outer.body = dict(self.headers), body
                status = outer.behave(number)
                if not status:
                    self.close_connection = True
                    return
                if 200 <= status < 300:
                    outer.told.append(json.loads(body))
                self.send_response(status)
                for name, value in outer.answer_headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                if 200 <= status < 300:
                    outer.acknowledged.append(uid)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
