"""Why the hub did not do what was asked, in words that hold no secret."""

import os

from prunetune.messages import plain
from prunetune.secrets import know, redact

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
    """Return a text without tokens and passwords, those of the hub's client among them."""
    from huggingface_hub import get_token

    named = [os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    know(secret for secret in (*named, get_token()) if secret)
    return redact(text)
