"""Passwords in addresses, hidden before an address is shown or logged."""

import re
import urllib.parse

#: What precedes a password in a URI, and the password. SQLAlchemy's ``URL`` hides a password only
#: in a URI that it can parse. A password with ``@``, ``#``, ``/`` or ``[`` in it makes a URI that
#: it cannot parse, and must not be shown either.
PASSWORD = re.compile(r"([\w+]+://[^:/@]*:)(.*)@")
#: A token for a server, in the place of a name and a password.
TOKEN = re.compile(r"(https?://)[^:/@\s']+@")
#: A secret among the parameters of a URI. It may hold quotes and spaces. In a message the URI
#: stands in quotes, and the secret ends with them.
SECRET_PARAMETER = re.compile(
    r"(?i)([?&](?:password|passwd|pwd|token|secret)=)[^&]*?(?=&|'[\s:;,.)]|'?$)"
)
#: Characters of the shortest password that is hidden inside words too.
LEAST_IN_WORDS = 4


def without_password(uri: str) -> str:
    """Return a URI, or a line that contains one, as it may be shown and logged."""
    hidden = PASSWORD.sub(r"\1***@", uri)
    hidden = TOKEN.sub(r"\1***@", hidden)
    return SECRET_PARAMETER.sub(r"\1***", hidden)


def without_secrets(message: str, uri: str) -> str:
    """Return the first line of a message without the password of a URI.

    Args:
        message: Text of a library, which may repeat the URI or only its password.
        uri: The URI whose password must not be shown.
    """
    hidden = message.replace(uri, without_password(uri))
    text = hidden.strip().split("\n")[0]
    found = PASSWORD.match(uri)
    if found is None:
        return text
    password = found[2]
    for secret in {password, urllib.parse.unquote(password)}:
        if len(secret) >= LEAST_IN_WORDS:
            text = text.replace(secret, "***")
        elif secret:
            # inside words, a password of a letter would be told by the letters that are missing
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text
