"""From samples to model inputs: prompts as the model's own chat template writes them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prunetune.calibration.dataset import CalibrationSet, Sample
from prunetune.calibration.pictures import Pictures
from prunetune.errors import ConfigError, DataError, PrunetuneError

_FALLBACK = "USER: {images}{question} ASSISTANT:"
_SAID = {"user": "USER: {} ", "assistant": "ASSISTANT: {} ", "system": "{} "}
_MARKERS = ("image_token", "video_token")


def encode(processor: Any, samples: Sequence[Sample]) -> Any:
    """Return a ``BatchFeature`` of the samples' prompts, left-padded, as tensors on the CPU.

    The prompt is the processor's chat template over pictures, then question, with the generation
    prompt appended; without a template, ``USER: <image>`` + question + ``ASSISTANT:``. Of a
    conversation it is the template over all its turns, pictures where they stand.

    Args:
        processor: Of the model.
        samples: At least one, all with the first one's options of the template.

    Raises:
        DataError: There are no samples, one has no picture, or the processor refuses one, which is
            named.
        ConfigError: The processor needs a package that is not installed, or does not know an
            option.
    """
    if not samples:
        raise DataError("encode received 0 samples; allowed: 1 or more")
    try:
        return _encode(processor, samples)
    except (PrunetuneError, MemoryError):
        raise
    except ImportError as error:
        raise ConfigError(
            f"the processor {type(processor).__name__} needs a package that is not installed: "
            f"{_line(error)}"
        ) from error
    except Exception as error:  # processors and templates raise whatever they like
        for sample in samples if len(samples) > 1 else ():
            encode(processor, [sample])
        if len(samples) > 1:
            raise
        raise DataError(_refusal(samples[0], error)) from error


def without_refused(processor: Any, side: CalibrationSet) -> CalibrationSet:
    """Return a set without the samples that the processor refuses; they are named as skipped.

    Raises:
        ConfigError: The processor needs a package that is not installed.
        DataError: None is left.
    """
    kept, refused = [], []
    for sample in side:
        try:
            encode(processor, [sample])
        except DataError as error:
            refused.append(str(error))
        else:
            kept.append(sample)
    if side.samples and not kept:
        raise DataError(f"no sample is left: {refused[0]}")
    return replace(side, samples=tuple(kept), skipped_names=(*side.skipped_names, *refused))


def _refusal(sample: Sample, error: Exception) -> str:
    names = ""
    if isinstance(sample.images, Pictures) and not sample.private:
        names = f", picture {', '.join(p.source.name for p in sample.images.pictures)}"
    sizes = ", ".join(f"{image.width}x{image.height}" for image in sample.images)
    place = f" ({sample.place})" if sample.place else ""
    return (
        f"sample {sample.id!r}{place}{names}: the processor refuses its prompt with picture(s) of "
        f"{sizes} pixels: {_line(error)}; mend the row, or leave it out with --skip-bad"
    )


def _line(error: BaseException) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:300]


def _encode(processor: Any, samples: Sequence[Sample]) -> Any:
    import torch

    pictures = [list(sample.images) for sample in samples]
    if bare := next((s for s, images in zip(samples, pictures, strict=True) if not images), None):
        raise DataError(f"sample {bare.id!r} has 0 pictures; allowed: 1 or more")
    padding = {"padding": True, "padding_side": "left"}
    markers, options = _markers(processor), _options(samples[0])
    bare_template = getattr(processor, "chat_template", None) is None
    if bare_template and samples[0].template:
        raise ConfigError(
            f"--template-arg: the model has no chat template that {samples[0].template[0][0]!r} "
            "could be an option of; leave it out"
        )
    with torch.device("cpu"):
        if bare_template:
            texts = [_plain(sample, markers) for sample in samples]
            encoded = processor(images=pictures, text=texts, return_tensors="pt", **padding)
            # PaliGemma's adds what training would need.
            encoded.pop("labels", None)
            return encoded
        return processor.apply_chat_template(
            [_turns(s, images, markers) for s, images in zip(samples, pictures, strict=True)],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=padding,
            **options,
        )


def prompt_text(processor: Any, sample: Sample) -> str:
    """Return the prompt of ``encode`` as text, one placeholder a picture.

    Args:
        processor: Of the model.
        sample: With at least one picture.
    """
    markers = _markers(processor)
    if getattr(processor, "chat_template", None) is None:
        return _plain(sample, markers)
    turns = _turns(sample, [None] * len(sample.images), markers)
    text = processor.apply_chat_template([turns], tokenize=False, **_options(sample))
    return str(text if isinstance(text, str) else text[0])


def _markers(processor: Any) -> list[str]:
    """Return the texts that stand for a picture or a video."""
    found = [str(getattr(processor, "image_token", "<image>"))]
    return found + [
        str(token) for name in _MARKERS[1:] if (token := getattr(processor, name, None))
    ]


def _options(sample: Sample) -> dict[str, Any]:
    return {"add_generation_prompt": True} | dict(sample.template)


def _cleared(text: str, markers: Sequence[str]) -> str:
    """Return a text without placeholders: one would ask for one more picture than there is."""
    for marker in markers:
        if marker in text:
            text = " ".join(text.split(marker))
    return text


def _turns(sample: Sample, images: list[Any], markers: Sequence[str]) -> list[dict[str, Any]]:
    """Return a sample as chat templates take it."""
    if not sample.turns:
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        question = _cleared(sample.question, markers).strip()
        return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    left = iter(images)
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": next(left)}
                if part is None
                else {"type": "text", "text": _cleared(part, markers)}
                for part in turn.parts
            ],
        }
        for turn in sample.turns
    ]


def _plain(sample: Sample, markers: Sequence[str]) -> str:
    """Return a sample's prompt for a model without a chat template."""
    if not sample.turns:
        return _FALLBACK.format(
            images=f"{markers[0]}\n" * len(sample.images),
            question=_cleared(sample.question, markers).strip(),
        )
    parts = [
        _SAID[turn.role].format(
            "".join(f"{markers[0]}\n" if p is None else _cleared(p, markers) for p in turn.parts)
        )
        for turn in sample.turns
    ]
    return f"{''.join(parts)}ASSISTANT:"


def batches_by_length(
    lengths: Sequence[int],
    token_budget: int,
    max_samples: int | None = None,
    *,
    batch_cost: int | None = None,
) -> list[list[int]]:
    """Group indices of prompts into batches of similar length, for the least time.

    A batch is padded to its longest prompt: small batches pad less, and there are more of them.

    Args:
        lengths: Tokens of each prompt.
        token_budget: Upper bound of rows x longest row of a batch; a longer prompt goes alone.
        max_samples: Upper bound of rows, where given.
        batch_cost: What a batch costs beside its rows x longest row, in tokens; None for as few
            batches as there can be.

    Returns:
        Batches of indices, shortest prompts first; together every index once.

    Raises:
        DataError: A bound is below 1.
    """
    for name, value in (("token_budget", token_budget), ("max_samples", max_samples)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}; allowed: 1 or more")
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    once = len(order) * max(lengths, default=0) if batch_cost is None else batch_cost
    # Of the k shortest prompts: the least cost, and where the last of their batches begins.
    least: list[tuple[int, int]] = [(0, 0)]
    for k, index in enumerate(order, start=1):
        longest = lengths[index]
        most = max(1, min(token_budget // max(longest, 1), max_samples or k, k))
        costs = ((least[k - n][0] + n * longest + once, k - n) for n in range(1, most + 1))
        least.append(min(costs))
    batches: list[list[int]] = []
    end = len(order)
    while end:
        begin = least[end][1]
        batches.append(order[begin:end])
        end = begin
    return batches[::-1]
