"""A page to draw digits on: ``python src/draw.py [--port 8765] [compare=<model>]``."""

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Python puts this folder there itself, but not with -P, -I or PYTHONSAFEPATH
sys.path.insert(0, str(Path(__file__).resolve().parent))

from digit_study.apps.draw.drawing_store import DrawingStore
from digit_study.apps.draw.network_view import LoadedModel, NetworkSource, ServedNetwork
from digit_study.apps.draw.same_origin import ADDRESS, allowed_hosts, listening_socket
from digit_study.inference.prediction import load_model
from digit_study.support.errors import StudyError
from digit_study.support.signals import Interrupted, interruptible, readable_errors
from digit_study.support.suggestions import nearest
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import quiet_mlflow
from digit_study.tracking.location import CHAMPION_URI, MODEL_NAMES
from digit_study.tracking.models import FoundModel, find_model, model_file, version_named

#: Settings that name a model.
MODEL_KEYS = ("model", "compare")
#: All settings.
SETTINGS = (*MODEL_KEYS, "keep", "tracking.uri")
#: Listens on every address of this machine.
EVERY_ADDRESS = "0.0.0.0"
#: Port of the page's address.
PORT = 8765
#: The first number that is no port.
PORTS_END = 2**16


@dataclass(frozen=True)
class FoundNetwork:
    """A network whose file is there, before TensorFlow is imported."""

    source: NetworkSource
    found: FoundModel

    def load(self) -> ServedNetwork:
        """Load it."""
        model = self.source.load(self.found.file)
        return ServedNetwork(self.source, LoadedModel(model, self.found.version))


def parse_arguments(words: Sequence[str], workspace: Workspace) -> argparse.Namespace:
    """Parse a command line.

    Args:
        words: What was typed.
        workspace: Where drawings are kept unless another folder is given.

    Returns:
        ``settings`` (a list of ``key=value``), ``port``, ``host`` and ``allow``.
    """
    parser = argparse.ArgumentParser(
        prog="draw.py",
        allow_abbrev=False,
        description="A page to draw a digit on, or to drop a picture of a digit, and what the "
        "network predicts meanwhile. It is for this machine alone; Ctrl-C ends it.",
        epilog=f"Settings: model={MODEL_NAMES}; compare=, a second model; keep=, a folder for "
        f"drawings that you label ({workspace.shown(workspace.drawings)}); tracking.uri=….",
    )
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"of the page's address; 0 for any free one ({PORT})"
    )
    parser.add_argument(
        "--host",
        default=ADDRESS,
        help=f"address to listen on; 0.0.0.0: for other machines too, with --allow ({ADDRESS})",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="another name by which the page may be opened, as phone.local:8765; may be repeated",
    )
    return parser.parse_args(words)


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """Return settings by key.

    Raises:
        StudyError: If a word is not a setting.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in SETTINGS or not value:
            raise StudyError(
                f"a setting must be {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}, with a value, "
                f"got '{word}'{nearest(key, SETTINGS)}"
            )
        settings[key] = value
    return settings


def find_networks(settings: Mapping[str, str], workspace: Workspace) -> list[FoundNetwork]:
    """Find the network that answers and the network it is compared with.

    Raises:
        StudyError: If a model cannot be found.
    """
    named = {"model": CHAMPION_URI, **settings}
    return [
        _find_network(key, named[key], settings.get("tracking.uri"), workspace)
        for key in MODEL_KEYS
        if key in named
    ]


def _find_network(key: str, uri: str, configured: str | None, workspace: Workspace) -> FoundNetwork:
    source = NetworkSource(
        uri,
        version=partial(version_named, uri, configured, workspace),
        file=partial(model_file, uri, configured, workspace),
        load=load_model,
    )
    found = find_model(uri, configured, workspace, key)
    return FoundNetwork(source, found)


def where_to_draw(address: str, port: int, allowed: Sequence[str]) -> str:
    """Return the addresses of the page, as a person is told them.

    Args:
        address: The IPv4 address that is listened on.
        port: The port.
        allowed: Hosts besides this machine by which the page may be opened.
    """
    own = f"Draw at http://{ADDRESS}:{port}/ (Ctrl-C ends it)"
    if not allowed:
        return own
    others = " and ".join(f"http://{host}/" for host in allowed)
    risk = (
        "whoever reaches that address can draw and keep drawings on this machine, without a "
        "password, and the connection is not encrypted"
    )
    if address in (ADDRESS, EVERY_ADDRESS):
        return f"{own}\nAlso at {others}: {risk}"
    return f"Draw at {others} (Ctrl-C ends it): {risk}"


def draw(arguments: argparse.Namespace, workspace: Workspace) -> None:
    """Check everything, load the networks, print the address, serve until a signal.

    Args:
        arguments: What :func:`parse_arguments` returned.
        workspace: Where drawings are kept and where the usual store lies.

    Raises:
        StudyError: If something that was given cannot be used.
    """
    settings = parse_settings(arguments.settings)
    folder = Path(settings.get("keep", workspace.drawings)).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise StudyError(
            f"`keep` must be a folder, or a path where one can be made, got '{folder}': name "
            "another"
        )
    if not 0 <= arguments.port < PORTS_END:
        raise StudyError(
            f"`--port` must be in [0, {PORTS_END - 1}], got {arguments.port}: leave it out for "
            f"{PORT}"
        )
    allowed = allowed_hosts(arguments.allow)
    if arguments.host != ADDRESS and not allowed:
        raise StudyError(
            f"`--host={arguments.host}` needs `--allow=<host:port>`, the name by which the other "
            f"machine opens the page, such as --allow={platform.node()}:{arguments.port}"
        )
    with listening_socket(arguments.port, arguments.host) as listener:
        networks = [found.load() for found in find_networks(settings, workspace)]
        from digit_study.apps.draw import server
        from digit_study.inference import detector

        address, port = listener.getsockname()
        app = server.make_app(
            networks, DrawingStore(folder), port, accepts=detector.load(), allowed=allowed
        )
        print(where_to_draw(address, port, allowed), flush=True)
        server.serve(app, listener, networks)


def main(words: Sequence[str]) -> None:
    """Answer a command line."""
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    workspace = Workspace.of_project()
    # a signal is the way such a page is ended: it is no error
    with readable_errors(), suppress(Interrupted), interruptible():
        draw(parse_arguments(words, workspace), workspace)


if __name__ == "__main__":
    main(sys.argv[1:])
