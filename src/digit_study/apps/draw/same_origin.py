"""A server for this machine alone: the loopback address, and requests of its own pages only.

A page of a stranger can make a browser send requests to 127.0.0.1, and by DNS rebinding even read
the answers. Both are refused by two headers that no page can forge: ``Host`` is the address the
browser believes it talks to, ``Origin`` the address its page came from.
"""

import errno
import re
import socket
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digit_study.support.errors import StudyError

#: The address that the server listens on.
ADDRESS = "127.0.0.1"
#: Names that a browser may know it by.
NAMES = (ADDRESS, "localhost", "[::1]")
#: What a browser sends as ``Host``.
HOST = re.compile(r"([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
#: The port that browsers leave out of ``Host``.
HTTP_PORT = 80
#: Connections that may wait to be accepted.
BACKLOG = 128
#: Headers of every answer: nothing is kept, guessed, framed or read by another site.
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: What a page may do: run its own script and style, show pictures it was given, ask its own server.
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: "
    "blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SameOriginMiddleware:
    """ASGI middleware that refuses, with 403 and a sentence, what other sites send or ask for."""

    def __init__(self, app: ASGIApp, port: int, allowed: Sequence[str] = ()) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in NAMES}
        self._hosts.update(allowed)
        if port == HTTP_PORT:
            self._hosts.update(NAMES)

    def refusal(self, headers: Headers) -> str | None:
        """Return a sentence if a request comes from elsewhere, else None."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            allowed = ", ".join(sorted(self._hosts))
            return f"`Host` must be one of {allowed}: open the address that draw.py printed."
        own = f"http://{hosts[0].lower()}"
        if any(origin != own for origin in headers.getlist("origin")):
            return "`Origin` must be this page itself: other sites may not use it."
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before anything of it is read."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._app
        if scope["type"] == "http":
            refused = self.refusal(Headers(scope=scope))
            if refused is not None:
                answer = PlainTextResponse(refused, 403)
        await answer(scope, receive, send_with_headers)


class TooLargeError(Exception):
    """A body goes on beyond what is taken."""


async def bounded_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request.

    Args:
        request: The request.
        max_bytes: How many bytes are taken.

    Raises:
        TooLargeError: As soon as the body is known to be larger, not after it has come.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > max_bytes:
        raise TooLargeError
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLargeError
    return bytes(body)


def allowed_hosts(given: Sequence[str]) -> list[str]:
    """Return the hosts, besides this machine, whose requests are answered.

    Args:
        given: What a person allowed, each as ``phone.local:8765``.

    Raises:
        StudyError: If one is no host.
    """
    for host in given:
        if not HOST.fullmatch(host.lower()):
            raise StudyError(
                "`--allow` must be a host with its port, as it stands in the address that is "
                f"opened, such as phone.local:8765, got '{host}'"
            )
    return [host.lower() for host in given]


def listening_socket(port: int, address: str = ADDRESS) -> socket.socket:
    """Return a socket that listens.

    Args:
        port: The port; 0 takes any free port.
        address: The IPv4 address to listen on; by default this machine alone can reach it.

    Raises:
        StudyError: If the port is taken, or the address is none of this machine.
    """
    # The protocol by name: only then does asyncio send the parts of an answer without waiting 40 ms
    # for a receipt.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as fault:
        listener.close()
        if address != ADDRESS and fault.errno != errno.EADDRINUSE:
            raise StudyError(
                f"`--host` must be an IPv4 address of this machine, got '{address}' "
                f"({fault.strerror}): give 0.0.0.0 for all of them"
            ) from None
        raise StudyError(
            f"`--port` must be a free port, got {port}, which cannot be had ({fault.strerror}): "
            "take another, or --port=0 for any free one"
        ) from None
    return listener
