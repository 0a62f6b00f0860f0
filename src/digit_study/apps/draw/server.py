"""The page to draw on and what it asks for: a FastAPI app, served by uvicorn to this machine alone.

A drawing is read as :mod:`predict` reads a file: its bytes, :func:`read_digit`, the model. No part of a request becomes
a path: drawings are kept under names of their own making.
"""

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect

from digit_study.apps.draw.drawing_store import NPZ, Kept, sample
from digit_study.apps.draw.network_view import Network, watch
from digit_study.apps.draw.same_origin import POLICY, OnlyHere, TooLarge, bounded_body
from digit_study.data.sources import CLASSES
from digit_study.inference.image_files import ImageError
from digit_study.inference.images import Digit, read_digit
from digit_study.inference.prediction import Accepts
from digit_study.support.messages import StudyError

PAGE = Path(__file__).with_name("draw.html")
MOST_BYTES = 16 * 2**20  # a phone's photo has two to eight megabytes
UPLOAD_S, READING_S = 20.0, 10.0
AT_ONCE = 2  # pictures decoded at the same time: one of 80 megapixels takes half a gigabyte
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much of a request is taken, and how long one may take."""

    most_bytes: int = MOST_BYTES
    upload_s: float = UPLOAD_S
    reading_s: float = READING_S


def answers(
    networks: list[Network], image: bytes, with_look: bool, accepts: Accepts | None = None
) -> dict[str, Any]:
    """What the page shows of one image: ``error`` in words, or ``pixels`` (28x28) and an answer of every network.

    ``is_digit`` is false where a detector does not accept it as one.

    An answer has ``network``, ``digit``, ten ``probabilities`` and ``attention``, which is a map (28x28) where it was
    asked for, else None; see :func:`network.look`.
    """
    try:
        digit = read_digit(image)
    except ImageError as fault:
        return {"error": str(fault), "pixels": None, "answers": []}
    read = [answer(one, digit, with_look) for one in networks]
    is_digit = accepts is None or bool(accepts(digit[None, ..., None])[0])
    return {"error": None, "pixels": digit.tolist(), "answers": read, "is_digit": is_digit}


def answer(network: Network, digit: Digit, with_look: bool) -> dict[str, Any]:
    """One network's part of :func:`answers`."""
    name, seen = network.read(digit, with_look)
    attention = np.round(seen.attention.astype(np.float64), 5).tolist() if with_look else None
    probabilities = seen.probabilities.tolist()
    return {
        "network": name,
        "digit": int(np.argmax(probabilities)),
        "probabilities": probabilities,
        "attention": attention,
    }


def examples(random: np.random.Generator) -> list[list[list[int]]]:
    """One digit of each class, drawn from the sample's unsealed digits: ten times 28x28 grey levels, light ink."""
    images, labels = sample()
    drawn = [random.choice(np.flatnonzero(labels == digit)) for digit in range(CLASSES)]
    return [images[index, ..., 0].tolist() for index in drawn]


class Desk:
    """Work of requests in a few threads, each piece with a time limit, and the words for what goes wrong."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="desk")

    async def work(self, do: Callable[[], T], within_s: float) -> T:
        """Do it in a thread; raises TimeoutError when the limit is over, though the thread still has to end."""
        return await asyncio.wait_for(
            asyncio.get_running_loop().run_in_executor(self._threads, do), within_s
        )

    async def with_image(self, request: Request, do: Callable[[bytes], dict[str, Any]]) -> Response:
        """Take the image in a request's body and answer with what ``do`` makes of it, as JSON.

        A picture that is refused is an answer like any other, 200 with its ``error``; a body that is too large is 413,
        one that takes too long 408.
        """
        try:
            image = await asyncio.wait_for(
                bounded_body(request, self.limits.most_bytes), self.limits.upload_s
            )
        except TooLarge:
            most = f"{self.limits.most_bytes / 2**20:.3g} MB"
            # the rest of it is not waited for
            return JSONResponse(
                {"error": f"is too large: at most {most}; shrink it"}, 413, {"Connection": "close"}
            )
        except ClientDisconnect:  # nobody is there to read an answer
            return Response(status_code=400)
        except TimeoutError:
            return JSONResponse(
                {"error": "did not arrive in time; send it again"}, 408, {"Connection": "close"}
            )
        try:
            return JSONResponse(await self.work(partial(do, image), self.limits.reading_s))
        except TimeoutError:
            why = f"takes longer than {self.limits.reading_s:g} s to read; shrink it"
        except StudyError as fault:
            why = str(fault)
        except OSError as fault:
            why = f"cannot be kept ({fault.strerror}); give another folder with keep=…"
        return JSONResponse({"error": why, "pixels": None, "answers": []})


def make_app(
    networks: list[Network],
    kept: Kept,
    port: int,
    limits: Limits | None = None,
    accepts: Accepts | None = None,
) -> FastAPI:
    """The page and its four questions: ``/state``, ``/examples``, ``/read`` and ``/keep``; the first network leads."""
    app = FastAPI(openapi_url=None)  # its pages of documentation would be fetched from elsewhere
    app.add_middleware(OnlyHere, port=port)
    desk, random, html = (
        Desk(limits or Limits()),
        np.random.default_rng(),
        PAGE.read_text(encoding="utf-8"),
    )

    @app.get("/")
    async def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(
            html.replace("{{nonce}}", nonce),
            headers={"Content-Security-Policy": POLICY.format(nonce=nonce)},
        )

    @app.get("/state")
    async def state() -> Response:
        return JSONResponse(
            {
                "networks": [network.name for network in networks],
                "kept": len(kept.names()),
                "npz": str(kept.folder / NPZ),
                "most_bytes": desk.limits.most_bytes,
            }
        )

    @app.get("/examples")
    async def some_examples() -> Response:
        return JSONResponse(await desk.work(partial(examples, random), desk.limits.reading_s))

    @app.post("/read")
    async def read(request: Request) -> Response:
        with_look = request.query_params.get("look") == "1"
        return await desk.with_image(
            request, lambda image: answers(networks, image, with_look, accepts)
        )

    @app.post("/keep")
    async def keep(request: Request) -> Response:
        label = request.query_params.get("label", "")
        return await desk.with_image(
            request,
            lambda image: {
                "error": None,
                "file": kept.keep(image, label),
                "kept": len(kept.names()),
            },
        )

    return app


def server_of(app: FastAPI) -> uvicorn.Server:
    """A server without logs of requests, web sockets or a header that says what it is."""
    config = uvicorn.Config(
        app, ws="none", log_level="warning", access_log=False, server_header=False
    )
    config.limit_concurrency, config.timeout_graceful_shutdown = 100, 2
    return uvicorn.Server(config)


def serve(app: FastAPI, listener: socket.socket, networks: list[Network]) -> None:
    """Serve on a listening socket and look for new champions, until SIGINT or SIGTERM, which is raised once more."""
    ended = threading.Event()
    watch(networks, ended)
    try:
        server_of(app).run(sockets=[listener])
    finally:
        ended.set()
