"""Sqlite databases: their URIs, for folders of any name, and connections to them."""

import sqlite3
import urllib.parse
from pathlib import Path

#: How the URI of a sqlite database begins.
SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """Return the URI of a sqlite file.

    SQLAlchemy decodes the path of a URI and takes what follows a question mark for options, so
    these two characters are encoded and no others: other URIs stay as people write them.

    Args:
        path: The file.
    """
    encoded = str(path)
    # per cent first: the other adds one
    encoded = encoded.replace("%", "%25")
    encoded = encoded.replace("?", "%3F")
    return f"{SQLITE}{encoded}"


def sqlite_path(uri: str) -> Path:
    """Return the path of the file of a sqlite URI, as SQLAlchemy decodes it."""
    location = uri.removeprefix(SQLITE)
    encoded, _, _ = location.partition("?")
    return Path(urllib.parse.unquote(encoded))


def connect(path: Path, locked_for: float = 1.0) -> sqlite3.Connection:
    """Open a sqlite database that exists; none is created, and no other is opened.

    Args:
        path: Its file.
        locked_for: Seconds for which it may be locked.
    """
    address = path.absolute().as_uri()
    return sqlite3.connect(f"{address}?mode=rw", uri=True, timeout=locked_for)
