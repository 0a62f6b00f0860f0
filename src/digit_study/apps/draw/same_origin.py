"""A server for this machine alone: the loopback address, requests of its own pages only, and answers that say so.

A page of a stranger can make a browser send requests to 127.0.0.1, and by DNS rebinding even read the answers. Both
are refused by two headers that no page can forge: ``Host`` is the address the browser believes it talks to, ``Origin``
the one its page came from.
"""

import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digit_study.support.messages import StudyError

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost", "[::1]")
#: What every answer says: nothing is kept, guessed, framed, told to others or read by another site.
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: What a page may do: run its own script and style, show pictures it was given, and speak to its own server.
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OnlyHere:
    """ASGI middleware: refuses with 403 and one sentence what is not addressed to, or not sent by, this server."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())

    def refusal(self, headers: Headers) -> str | None:
        """One sentence if the request comes from elsewhere, else None."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return f"`Host` must be one of {', '.join(sorted(self.hosts))}: open the address that draw.py printed."
        if any(origin != f"http://{hosts[0].lower()}" for origin in origins):
            return "`Origin` must be this page itself: other sites may not use it."
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before anything of it is read."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self.refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        answer: ASGIApp = self.app if refused is None else PlainTextResponse(refused, 403)
        await answer(scope, receive, send_with_headers)


class TooLarge(Exception):
    """A body that goes on beyond what is taken."""


async def bounded_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request; raises :class:`TooLarge` as soon as it is known to be larger, not after."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most_bytes:
        raise TooLarge
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise TooLarge
    return bytes(body)


def listening_socket(port: int) -> socket.socket:
    """A socket that listens on the loopback address; 0 takes any free port. Raises StudyError if it is taken."""
    # the protocol by name: only then does asyncio send the parts of an answer without waiting 40 ms for a receipt
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(128)
    except OSError as fault:
        listener.close()
        why = f"got {port}, which cannot be had ({fault.strerror})"
        raise StudyError(
            f"`--port` must be a free port, {why}: take another, or --port=0 for any free one"
        ) from None
    return listener
