"""Why the hub did not do what was asked, in words that hold no secret."""

import os
import re

from prunetune.messages import plain

_TOKEN = re.compile(r"(?i)(bearer\s+)[^\s'\"]+|\bhf_[a-z0-9]{8,}|(?<=://)[^/@\s]+(?=@)")
_LONGEST = 160


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, without tokens and passwords.

    HTTP libraries quote a header that they refuse, and a proxy's address with its password.
    """
    text = without_secrets(str(error).strip() or type(error).__name__)
    return plain(text.splitlines()[0])[:_LONGEST]


def cause_of(error: BaseException) -> BaseException | None:
    """Return an error to raise another from; None where a traceback of it would tell a secret."""
    told: BaseException | None = error
    while told is not None:
        if without_secrets(str(told)) != str(told):
            return None
        told = told.__cause__ or told.__context__
    return error


def without_secrets(text: str) -> str:
    """Return a text without tokens and passwords."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return _TOKEN.sub(lambda found: f"{found[1] or ''}***", text)


def _secrets() -> list[str]:
    from huggingface_hub import get_token

    named = [os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    found = {part for secret in [*named, get_token()] if secret for part in (secret, repr(secret))}
    # As a message of Python quotes it, too.
    return sorted({*found, *(part[1:-1] for part in found if part[0] in "'\"")}, key=len)[::-1]
