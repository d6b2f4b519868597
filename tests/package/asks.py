"""Asks policyd at a steady pace, as many connections of Postfix do; tells how many it answered.

Run as a program of its own, with Python's own library alone. Arguments: the socket, requests a second, and how many.
"""

import json
import socket
import sys
import threading
import time

CONNECTIONS = 10
REQUEST = (
    "request=smtpd_access_policy\nprotocol_state=END-OF-MESSAGE\nprotocol_name=ESMTP\nclient_address=127.0.0.1\n"
    "sender=a@example.org\nrecipient=b@remote.test\nrecipient_count=1\nsize=100\ninstance={}\n"
    "sasl_method=plain\nsasl_username=rotated@example.org\n\n"
)


def main() -> None:
    path, pace, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    answers = []
    begun = time.monotonic()

    def ask(first: int) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(path)
            for number in range(first, count, CONNECTIONS):
                time.sleep(max(0.0, begun + number / pace - time.monotonic()))
                sock.sendall(REQUEST.format(f"{number:x}.asks").encode())
                answer = b""
                while not answer.endswith(b"\n\n"):
                    data = sock.recv(4096)
                    if not data:
                        return
                    answer += data
                answers.append(answer)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = sum(answer == b"action=DUNNO\n\n" for answer in answers)
    print(json.dumps({"passed": passed, "seconds": round(time.monotonic() - begun, 1)}))


main()
