"""Passwords in URLs, tokens, and how they stay off every screen, log and report.

What a message may hold is known in two ways: by its form, and, where a command line was read, by
what stood in it. A form can be broken (a password with a blank); what was typed is known as it is.
"""

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_HIDDEN = "***"
_SHORTEST = 4
_NAMES = r"(?:password|passwd|pwd|passphrase|secret|token|api_?key)"
# Greedy: a user's name, a password and a message may hold "@" and blanks themselves. It ends where
# the next URL begins, or a port would be taken for the begin of that one's password.
_NEXT = r"[\s'\"(,=]\w[\w+.-]*://"
# No password: what follows hf://, whose "@" begins a revision; a port that stands where one ends.
_NUMBER = r"\d{1,5}(?:/[\w.%-]*(?=['\"),;?:]|$)|(?=['\"),;]|$))"
_WEB = r"(?<=http)|(?<=https)"
_USER = re.compile(
    rf"((?<!\bhf)(?!(?:{_WEB})://[^:/\[\]@\s]*:\d{{1,5}}(?:[/?#\s'\"),;:]|$))://[^:/\[\]]*:)"
    rf"(?!\*{{3}}|{_NUMBER})(?:(?!{_NEXT}).)*(?=@)",
    re.DOTALL,
)
# The host is missing, or the password holds what ends one: the port is no number then.
_PORT = re.compile(r"((?<!\bhf)://[^:/@\s\[\]]+:)(?!\*{3}|\d{1,5}(?:[/?#\s'\"),;:]|$))[^/?#\s'\"]+")
# What the hub's client and HTTP libraries repeat: tokens, and logins without a password.
_TOKEN = re.compile(
    r"(?i)(bearer\s+(?=\S{16}))[^\s'\"]+|\bhf_[a-z0-9]{20,}|(?:(?<=http://)|(?<=https://))[^/:@\s]+(?=@)"
)
_NAMED = re.compile(rf"({_NAMES}\s*=\s*)(?:'[^']*'|\"[^\"]*\"|[^&\s'\"]+)", re.I)
_QUERY = re.compile(rf"[?&]{_NAMES}=([^&]*)", re.I)
_known: set[str] = set()


def forget() -> None:
    """Know none of the passwords that were typed: a command line has ended."""
    _known.clear()


def know(secrets: Iterable[str]) -> None:
    """Know secrets that were not typed, as they are and as a message of Python quotes them."""
    for secret in secrets:
        forms = {secret, repr(secret)[1:-1]}
        _known.update(form for form in forms if len(form) >= _SHORTEST)


def remember(words: Iterable[str]) -> None:
    """Know the passwords in what was typed: they are hidden from then on, whatever is said."""
    for word in words:
        for secret in _secrets(word):
            forms = {secret, unquote(secret), unquote_plus(secret), quote(secret, safe="")}
            forms |= {quote_plus(secret), " ".join(secret.split()), repr(secret)[1:-1]}
            _known.update(form for form in forms if len(form) >= _SHORTEST)


def redact(message: str) -> str:
    """Return ``message`` (a storage URL, or a message that holds one) with passwords replaced."""
    for secret in sorted(_known, key=len, reverse=True):
        message = message.replace(secret, _HIDDEN)
    if "://" in message:
        message = _USER.sub(rf"\1{_HIDDEN}", message)
        message = _PORT.sub(rf"\1{_HIDDEN}", message)
    message = _TOKEN.sub(lambda found: f"{found[1] or ''}{_HIDDEN}", message)
    return _NAMED.sub(rf"\1{_HIDDEN}", message)


def _secrets(word: str) -> Iterable[str]:
    _, scheme, rest = word.partition("://")
    if scheme:
        user, at, _ = rest.rpartition("@")
        if at:
            yield user.partition(":")[2]
        elif (found := _PORT.search(word)) is not None:
            yield found[0].removeprefix(found[1])
        yield from _QUERY.findall(rest)
    else:
        for found in _NAMED.finditer(word):
            yield found[0].removeprefix(found[1]).strip("'\"")
