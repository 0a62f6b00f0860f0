"""A page to draw digits on: ``python src/draw.py [--port 8765] [compare=models:/digit-recognizer/2]``."""

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from digit_study.apps.draw.drawing_store import Kept
from digit_study.apps.draw.network_view import Loaded, Network, Place
from digit_study.apps.draw.same_origin import ADDRESS, listening_socket
from digit_study.inference.prediction import load_model
from digit_study.support.console import protect_standard_streams
from digit_study.support.messages import StudyError, nearest
from digit_study.support.signals import Interrupted, collect_rarely, interruptible
from digit_study.tracking.database import (
    ARTIFACTS,
    CHAMPION_URI,
    NAMED,
    quiet_mlflow,
)
from digit_study.tracking.models import model_file, version_named

SETTINGS, PORT = ("model", "compare", "keep", "tracking.uri"), 8765
KEPT = ARTIFACTS / "drawings"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line: ``given`` (settings) and ``port``."""
    parser = argparse.ArgumentParser(
        prog="draw.py",
        allow_abbrev=False,
        description="A page to draw a digit on, or to drop a picture of one, and what the network reads meanwhile. "
        "It is for this machine alone; Ctrl-C ends it.",
        epilog=f"Settings: model={NAMED}; compare=, a second model; keep=, a folder for drawings that you label "
        f"({KEPT.parent.name}/{KEPT.name}); tracking.uri=….",
    )
    parser.add_argument("given", nargs="*", metavar="SETTING=VALUE")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"of the page's address; 0 for any free one ({PORT})"
    )
    return parser.parse_args(words)


def settings_of(given: Sequence[str]) -> dict[str, str]:
    """Settings by key; raises StudyError for a word that is none."""
    settings = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or key not in SETTINGS or not value:
            rule = f"a setting must be {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}, with a value"
            raise StudyError(f"{rule}, got '{word}'{nearest(key, SETTINGS)}")
        settings[key] = value
    return settings


def networks_of(settings: Mapping[str, str]) -> list[Network]:
    """Load the network that answers and the one it is compared with; StudyError, before TensorFlow, if one is none."""
    tracking, found = settings.get("tracking.uri"), []
    for key, uri in {"model": CHAMPION_URI, **settings}.items():
        if key in ("model", "compare"):
            place = Place(
                uri,
                partial(version_named, uri, tracking),
                partial(model_file, uri, tracking),
                load_model,
            )
            try:
                place.file()  # it says in words what is missing
            except StudyError as fault:
                raise StudyError(str(fault).replace("`model`", f"`{key}`")) from None
            found.append(
                (place, place.version(), place.file())
            )  # in this order: an alias may move in between
    return [Network(place, Loaded(load_model(file), version)) for place, version, file in found]


def draw(arguments: argparse.Namespace) -> None:
    """Check everything, load the networks, print the address, serve until a signal."""
    settings = settings_of(arguments.given)
    keep = Path(settings.get("keep", KEPT)).expanduser().resolve()
    if keep.exists() and not keep.is_dir():
        raise StudyError(
            f"`keep` must be a folder, or a path where one can be made, got '{keep}': name another"
        )
    if not 0 <= arguments.port < 2**16:
        raise StudyError(
            f"`--port` must be in [0, 65535], got {arguments.port}: leave it out for {PORT}"
        )
    with listening_socket(arguments.port) as listener:
        networks = networks_of(settings)
        from digit_study.apps.draw import server as drawing
        from digit_study.inference import detector

        port = listener.getsockname()[1]
        app = drawing.make_app(networks, Kept(keep), port, accepts=detector.load())
        print(f"Draw at http://{ADDRESS}:{port}/ (Ctrl-C ends it)", flush=True)
        drawing.serve(app, listener, networks)


def main(words: Sequence[str]) -> int:
    """Answer a command line; returns the exit code."""
    protect_standard_streams()
    collect_rarely()
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    try:
        with interruptible():
            draw(parsed(words))
    except StudyError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except Interrupted:  # the way such a page is ended
        return 0
    finally:
        gc.freeze()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
