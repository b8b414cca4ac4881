"""From lmms-eval's messages to model inputs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prunetune.calibration.pictures import Source, decode
from prunetune.errors import UnsupportedModelError
from prunetune.files import read_plain

_PLAIN = {"user": "USER: {} ", "assistant": "ASSISTANT: {} ", "system": "{} "}
_MARKERS = ("image_token", "video_token")
Messages = list[dict[str, Any]]


def user_turn(visuals: Sequence[Any], text: str) -> Messages:
    """Return one turn: pictures and videos, then the text, as lmms-eval's own models have it."""
    parts = [{"type": "video" if _is_video(v) else "image", "url": v} for v in visuals]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def media_of(messages: Messages) -> tuple[str, ...]:
    """Return the kinds of what is not text, in order."""
    parts = (part for message in messages for part in _parts(message))
    return tuple(part["type"] for part in parts if part["type"] != "text")


def encode(
    processor: Any, conversations: Sequence[Messages], *, num_frames: int | None = None
) -> Any:
    """Return a ``BatchFeature`` of prompts, left-padded, as tensors on the CPU.

    A prompt is the processor's chat template over all messages, pictures where they stand, with
    the generation prompt. Placeholders within a text go: each would ask for one more picture.

    Args:
        processor: Of the model.
        conversations: At least one, in lmms-eval's form (``url`` holds a picture or a path).
        num_frames: Of a video; None for the processor's own.

    Raises:
        UnsupportedModelError: Something is neither text nor picture nor video.
    """
    import torch

    markers = [token for name in _MARKERS if (token := getattr(processor, name, None))]
    turns = [[_turn(message, markers) for message in messages] for messages in conversations]
    padding: dict[str, Any] = {"padding": True, "padding_side": "left"}
    with torch.device("cpu"):
        if getattr(processor, "chat_template", None) is None:
            return _without_template(processor, turns, padding)
        if num_frames is not None and any("video" in media_of(m) for m in conversations):
            padding["num_frames"] = num_frames
        return processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=padding,
        )


def _turn(message: Mapping[str, Any], markers: Sequence[str]) -> dict[str, Any]:
    return {
        "role": message["role"],
        "content": [_part(part, markers) for part in _parts(message)],
    }


def _part(part: Mapping[str, Any], markers: Sequence[str]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        text = str(part["text"])
        for marker in markers:
            text = text.replace(marker, "")
        return {"type": "text", "text": text.strip()}
    value = part.get("url", part.get(kind))
    if kind == "image":
        return {"type": "image", "image": _picture(value)}
    if kind == "video":
        return {"type": "video", "video": value}
    raise UnsupportedModelError(f"a task asks with {kind}; allowed: text, image, video")


def _picture(value: Any) -> Any:
    if isinstance(value, str):
        return decode(Source(value, partial(read_plain, Path(value))))
    return value.convert("RGB")


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _without_template(processor: Any, turns: Any, padding: dict[str, Any]) -> Any:
    images = [
        [part["image"] for turn in one for part in turn["content"] if part["type"] == "image"]
        for one in turns
    ]
    marker = str(getattr(processor, "image_token", "<image>"))
    texts = []
    for one in turns:
        said = [
            _PLAIN[turn["role"]].format(
                "".join(p.get("text", f"{marker}\n") for p in turn["content"])
            )
            for turn in one
        ]
        texts.append(f"{''.join(said)}ASSISTANT:")
    given = {"images": images} if any(images) else {}
    encoded = processor(text=texts, return_tensors="pt", **given, **padding)
    # PaliGemma's adds what training would need.
    encoded.pop("labels", None)
    return encoded


def _is_video(value: Any) -> bool:
    return isinstance(value, str) and not value.lower().endswith(
        (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    )
