"""The page to draw on and what it asks for: a FastAPI app, served by uvicorn to this machine alone.

A drawing is predicted as ``predict.py`` predicts a file: a digit, or the digits in a row. But what
the detector refuses is shown with a warning, and a single digit is shown as it lies. No part of a
request becomes a path: drawings are kept under names of their own making.
"""

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect

from digit_study.apps.draw.drawing_store import DrawingStore, sample
from digit_study.apps.draw.network_view import ServedNetwork, watch_versions
from digit_study.apps.draw.same_origin import (
    POLICY,
    SameOriginMiddleware,
    TooLargeError,
    bounded_body,
)
from digit_study.data.sources import CLASSES
from digit_study.inference.detector import Accepts
from digit_study.inference.prediction import Picture, Reading
from digit_study.pictures.image_files import upright_size
from digit_study.pictures.images import Digit
from digit_study.support.errors import StudyError

#: The page itself.
PAGE = Path(__file__).with_name("draw.html")
#: Pictures decoded at the same time: a picture of 80 megapixels takes half a gigabyte.
DECODED_AT_ONCE = 2
#: Requests that are answered at the same time.
CONCURRENT_REQUESTS = 100
#: Seconds that requests have to end when the server ends.
SHUTDOWN_S = 2
#: Decimal places of a saliency map.
SALIENCY_PLACES = 5
T = TypeVar("T")
#: What a request is answered with, as JSON.
Json = dict[str, Any]


@dataclass(frozen=True)
class RequestLimits:
    """How much of a request is taken, and how long a request may take."""

    #: A phone's photo has two to eight megabytes.
    max_bytes: int = 16 * 2**20
    #: Seconds for the body to arrive.
    upload_s: float = 20.0
    #: Seconds to decode and predict it.
    work_s: float = 10.0


def predict_image(
    networks: list[ServedNetwork],
    image: bytes,
    *,
    with_saliency: bool,
    accepts: Accepts | None = None,
) -> Json:
    """Return what the page shows of an image: of a digit, or of several in a row.

    Args:
        networks: Who answers, the first first.
        image: Bytes of an image file.
        with_saliency: Make the saliency maps too.
        accepts: The detector of what is no digit, if it is asked.

    Returns:
        ``error`` in words or None, ``pixels`` (28x28), an answer of every network, and
        ``is_digit``. An answer has ``network``, ``digit``, ten ``probabilities`` and ``attention``,
        which is a map (28x28) or None. Of several digits, see :func:`_predict_number`.
    """
    picture = Picture(image)
    digit = picture.prepared.pixels
    if digit is not None:
        return _predict_digit(networks, digit, with_saliency=with_saliency, accepts=accepts)
    return _predict_number(networks, picture, with_saliency=with_saliency, accepts=accepts)


def _predict_digit(
    networks: list[ServedNetwork], digit: Digit, *, with_saliency: bool, accepts: Accepts | None
) -> Json:
    """Return what the page shows of a digit."""
    return {
        "error": None,
        "pixels": digit.tolist(),
        "answers": [_answer(network, digit, with_saliency=with_saliency) for network in networks],
        "is_digit": accepts is None or bool(accepts(digit[None, ..., None])[0]),
    }


def _predict_number(
    networks: list[ServedNetwork], picture: Picture, *, with_saliency: bool, accepts: Accepts | None
) -> Json:
    """Return what the page shows of a picture of several marks, or of one that cannot be read.

    ``pixels`` is None and ``size`` the width and height of the picture. An answer has ``network``,
    ``number`` (lines parted by a line break), its ``probability``, and ``digits``, each with
    ``digit``, its ``probability`` and ``box`` (left, top, width, height in pixels).
    """
    found = [network.read(picture, accepts) for network in networks]
    is_digit = all(reading.error is None for _, reading in found)
    if not is_digit and accepts is not None:
        # what the detector refuses is shown with a warning, as a single digit is
        found = [network.read(picture, None) for network in networks]
    for _, reading in found:
        if reading.error is not None:
            return _refusal(reading.error)
    digits = [reading.pixels for _, reading in found if reading.pixels is not None]
    if len(digits) == len(networks):
        # the other marks were dust
        return _predict_digit(networks, digits[0], with_saliency=with_saliency, accepts=accepts)
    size = upright_size(picture.source)
    return {
        "error": None,
        "pixels": None,
        "answers": [_number_answer(name, reading, size) for name, reading in found],
        "is_digit": is_digit,
        "size": list(size),
    }


def _number_answer(name: str, reading: Reading, size: tuple[int, int]) -> Json:
    """Return what a network reads of a number in a picture of a size."""
    number = reading.number
    if number is None:
        # it takes for a digit what another network takes for several
        probability = max(reading.probabilities or [0.0])
        whole = [0, 0, *size]
        return {
            "network": name,
            "number": str(reading.digit),
            "probability": probability,
            "digits": [{"digit": reading.digit, "probability": probability, "box": whole}],
        }
    digits = []
    for digit in number.digits:
        digits.append(
            {
                "digit": digit.digit,
                "probability": max(digit.probabilities),
                "box": list(astuple(digit.box)),
            }
        )
    return {
        "network": name,
        "number": number.text,
        "probability": number.probability,
        "digits": digits,
    }


def _refusal(error: str) -> Json:
    """Return what the page is told of a picture that cannot be read."""
    return {"error": error, "pixels": None, "answers": []}


def _answer(network: ServedNetwork, digit: Digit, *, with_saliency: bool) -> Json:
    """Return the answer of a network for the page."""
    name, answer = network.predict(digit, with_saliency=with_saliency)
    saliency = None
    if answer.saliency is not None:
        saliency = np.round(answer.saliency.astype(np.float64), SALIENCY_PLACES).tolist()
    return {
        "network": name,
        "digit": int(np.argmax(answer.probabilities)),
        "probabilities": answer.probabilities.tolist(),
        "attention": saliency,
    }


def examples(random: np.random.Generator) -> list[list[list[int]]]:
    """Return a digit of each class, drawn from the sample's unsealed digits.

    Args:
        random: Draws them.

    Returns:
        Ten times 28x28 grey levels, light ink.
    """
    images, labels = sample()
    drawn = [random.choice(np.flatnonzero(labels == digit)) for digit in range(CLASSES)]
    return [images[index, ..., 0].tolist() for index in drawn]


class RequestWorkers:
    """A few threads that do the work of requests within time limits, and say what goes wrong."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self._threads = ThreadPoolExecutor(DECODED_AT_ONCE, thread_name_prefix="request")

    async def run(self, work: Callable[[], T]) -> T:
        """Do work in a thread.

        Raises:
            TimeoutError: When the limit is over, though the thread still has to end.
        """
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(self._threads, work), self.limits.work_s)

    async def answer_image(self, request: Request, work: Callable[[bytes], Json]) -> Response:
        """Take the image in a request's body and answer with what becomes of it.

        A picture that is refused is an answer like any other, 200 with its ``error``. A body that
        is too large is 413, a body that takes too long 408.

        Args:
            request: The request.
            work: Makes the answer of the image's bytes.
        """
        try:
            body = bounded_body(request, self.limits.max_bytes)
            image = await asyncio.wait_for(body, self.limits.upload_s)
        except TooLargeError:
            largest = f"{self.limits.max_bytes / 2**20:.3g} MB"
            return _hang_up(413, f"is too large: at most {largest}; shrink it")
        except ClientDisconnect:  # nobody is there to read an answer
            return Response(status_code=400)
        except TimeoutError:
            return _hang_up(408, "did not arrive in time; send it again")
        try:
            return JSONResponse(await self.run(partial(work, image)))
        except TimeoutError:
            error = f"takes longer than {self.limits.work_s:g} s to read; shrink it"
        except StudyError as fault:
            error = str(fault)
        except OSError as fault:
            error = f"cannot be kept ({fault.strerror}); give another folder with keep=…"
        return JSONResponse(_refusal(error))


def _hang_up(status: int, error: str) -> Response:
    """Return an answer after which the rest of the request is not waited for."""
    return JSONResponse({"error": error}, status, {"Connection": "close"})


def make_app(
    networks: list[ServedNetwork],
    drawings: DrawingStore,
    port: int,
    limits: RequestLimits | None = None,
    accepts: Accepts | None = None,
    allowed: Sequence[str] = (),
) -> FastAPI:
    """Return the app: the page, ``/state``, ``/examples``, ``/read`` and ``/keep``.

    Args:
        networks: Who answers, the first first.
        drawings: Where labelled drawings are kept.
        port: Port of the page's address.
        limits: Limits of a request.
        accepts: The detector of what is no digit, if it is asked.
        allowed: Hosts besides this machine by which the page may be opened.
    """
    app = FastAPI(openapi_url=None)  # its pages of documentation would be fetched from elsewhere
    app.add_middleware(SameOriginMiddleware, port=port, allowed=allowed)
    workers = RequestWorkers(limits or RequestLimits())
    random = np.random.default_rng()
    html = PAGE.read_text(encoding="utf-8")

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
                "kept": len(drawings.names()),
                "npz": str(drawings.npz),
                "most_bytes": workers.limits.max_bytes,
            }
        )

    @app.get("/examples")
    async def some_examples() -> Response:
        return JSONResponse(await workers.run(partial(examples, random)))

    @app.post("/read")
    async def read(request: Request) -> Response:
        with_saliency = request.query_params.get("look") == "1"

        def predict(image: bytes) -> Json:
            return predict_image(networks, image, with_saliency=with_saliency, accepts=accepts)

        return await workers.answer_image(request, predict)

    @app.post("/keep")
    async def keep(request: Request) -> Response:
        label = request.query_params.get("label", "")

        def add(image: bytes) -> Json:
            name = drawings.add(image, label)
            return {"error": None, "file": name, "kept": len(drawings.names())}

        return await workers.answer_image(request, add)

    return app


def make_server(app: FastAPI) -> uvicorn.Server:
    """Return a server without logs of requests, web sockets or a header that says what it is."""
    config = uvicorn.Config(
        app,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONCURRENT_REQUESTS,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, listener: socket.socket, networks: list[ServedNetwork]) -> None:
    """Serve until SIGINT or SIGTERM, which is raised once more, and look for new champions.

    Args:
        app: What :func:`make_app` returned.
        listener: A listening socket.
        networks: The networks of the app.
    """
    ended = threading.Event()
    watch_versions(networks, ended)
    try:
        make_server(app).run(sockets=[listener])
    finally:
        ended.set()
