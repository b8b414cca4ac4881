"""Pictures of a request: each becomes a data URI that is known to be one, before the model's turn.

The server behind would take paths of this machine, any URL, any format of Pillow, of any size.
"""

import asyncio
import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from prunetune.calibration.pictures import FORMATS, Source, decode
from prunetune.deploy.front.fetching import fetch
from prunetune.deploy.front.limits import Limits
from prunetune.deploy.front.replies import Refused
from prunetune.errors import DataError

_DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,")
_AT_ONCE = 8

Reference = tuple[dict[str, Any], str]
"""What holds a picture's URL, and under which key."""


class Resolver:
    """Reads the pictures of requests in threads of its own, never in the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fetching = ThreadPoolExecutor(_AT_ONCE, "prunetune-fetch")
        # One: what a decoded picture takes is not taken several times.
        self._decoding = ThreadPoolExecutor(1, "prunetune-decode")

    async def resolve(self, references: Sequence[Reference]) -> None:
        """Replace the URLs in a request by data URIs; those that are some stay as they are.

        Raises:
            Refused: One may not be fetched, cannot be, or is no picture that is read.
        """
        if len(references) > self._limits.pictures:
            raise Refused(
                400,
                f"the request has {len(references)} pictures, allowed {self._limits.pictures}",
                "image_url",
            )
        loop, left = asyncio.get_running_loop(), self._limits.pixels
        for holder, key in references:
            url = holder[key]
            if url.startswith(("http://", "https://")):
                work = loop.run_in_executor(self._fetching, fetch, url, self._limits)
                # A name can take longer to be looked up than all else together.
                data = await _within(work, 2 * self._limits.picture_seconds)
            else:
                data = await loop.run_in_executor(self._decoding, _held, url)
            kind, pixels = await loop.run_in_executor(self._decoding, _checked, data, left)
            left -= pixels
            if not url.startswith("data:"):
                text = await loop.run_in_executor(self._decoding, base64.b64encode, data)
                holder[key] = f"data:{kind};base64,{text.decode('ascii')}"

    def close(self) -> None:
        """Start nothing more."""
        for pool in (self._fetching, self._decoding):
            pool.shutdown(wait=False, cancel_futures=True)


async def _within(work: "asyncio.Future[bytes]", seconds: float) -> bytes:
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        raise Refused(
            400, f"the picture was not here after {seconds:g} seconds", "image_url"
        ) from None


def _held(url: str) -> bytes:
    found = _DATA.match(url)
    if found is None:
        raise Refused(
            400,
            f"image_url: received {url[:60]!r}, allowed data:image/...;base64,... or a URL of "
            "http or https; files of the server are not read",
            "image_url",
        )
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "the picture's data is not base64", "image_url") from None


def _checked(data: bytes, most: int) -> tuple[str, int]:
    """Return the media type and the pixels of a picture, after it was decoded once.

    Raises:
        Refused: It is too large, or none that is read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.init()
            formats = [name for name in FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=formats) as image:
                kind = Image.MIME.get(image.format or "", "image/png")
                pixels = image.width * image.height
        if pixels > most:
            raise Refused(
                400,
                f"the pictures of the request have more pixels than allowed: this one "
                f"{pixels:,}, left for it {most:,}; make it smaller",
                "image_url",
            )
        decode(Source("in the request", lambda: data))
    except DataError as error:
        raise Refused(400, str(error), "image_url") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        text = "too large" if isinstance(error, Image.DecompressionBombError) else "no picture"
        raise Refused(
            400, f"the data is {text}; allowed: {', '.join(FORMATS)}", "image_url"
        ) from None
    return kind, pixels
