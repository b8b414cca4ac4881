"""Why the hub did not do what was asked, in words that hold no secret."""

import os
import re

from prunetune.messages import plain

_TOKEN = re.compile(r"(?i)(bearer\s+)[^\s'\"]+|\bhf_\w+|(?<=://)[^/@\s]+(?=@)")
_LONGEST = 160


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, without tokens and passwords.

    HTTP libraries quote a header that they refuse, and a proxy's address with its password.
    """
    text = str(error).strip() or type(error).__name__
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _TOKEN.sub(lambda found: f"{found[1] or ''}***", text)
    return plain(text.splitlines()[0])[:_LONGEST]


def _secrets() -> list[str]:
    from huggingface_hub import get_token

    named = [os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    found = {part for secret in [*named, get_token()] if secret for part in (secret, repr(secret))}
    # As a message of Python quotes it, too.
    return sorted({*found, *(part[1:-1] for part in found if part[0] in "'\"")}, key=len)[::-1]
