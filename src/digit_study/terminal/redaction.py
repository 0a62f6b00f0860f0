"""What may be shown of a URI that holds a password: in a message, a log, a store that others can open."""

from __future__ import annotations

import re
import urllib.parse

#: What stands before a password, and the password, which itself may hold ``@``, ``#`` or ``/``.
PASSWORD = re.compile(r"([\w+]+://[^:/@]*:)(.*)@")


def without_password(uri: str) -> str:
    """A URI, or a line with one in it, as it may be shown and logged."""
    hidden = PASSWORD.sub(r"\1***@", uri)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd|token|secret)=)[^&]*", r"\1***", hidden)


def without_secrets(message: str, uri: str) -> str:
    """The first line of a message, with ``uri`` and the password in it hidden."""
    text = message.replace(uri, without_password(uri)).strip().split("\n")[0]
    found = PASSWORD.match(uri)
    for secret in {found[2], urllib.parse.unquote(found[2])} - {""} if found else set():
        text = text.replace(secret, "***")
    return text
