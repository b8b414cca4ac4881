"""From samples to model inputs, and from generated text to right or wrong."""

from collections.abc import Sequence
from typing import Any

from prunetune.calibration.dataset import Sample
from prunetune.errors import DataError

_FALLBACK = "USER: {images}{question} ASSISTANT:"


def encode(processor: Any, samples: Sequence[Sample]) -> Any:
    """Return a ``BatchFeature`` of the samples' prompts, left-padded, as tensors on the CPU.

    The prompt is the processor's chat template over pictures, then question, with the generation
    prompt appended; without a template, ``USER: <image>`` + question + ``ASSISTANT:``.

    Raises:
        DataError: There are no samples, or one has no picture.
    """
    import torch

    if not samples:
        raise DataError("encode received 0 samples; allowed: 1 or more")
    marker = str(getattr(processor, "image_token", "<image>"))
    pictures = [list(sample.images) for sample in samples]
    if bare := next((s for s, images in zip(samples, pictures, strict=True) if not images), None):
        raise DataError(f"sample {bare.id!r} has 0 pictures; allowed: 1 or more")
    # A placeholder inside the question would ask for one more picture than there is.
    questions = [" ".join(sample.question.split(marker)).strip() for sample in samples]
    padding = {"padding": True, "padding_side": "left"}
    if getattr(processor, "chat_template", None) is None:
        texts = [
            _FALLBACK.format(images=f"{marker}\n" * len(images), question=question)
            for images, question in zip(pictures, questions, strict=True)
        ]
        with torch.device("cpu"):
            encoded = processor(images=pictures, text=texts, return_tensors="pt", **padding)
        # PaliGemma's adds what training would need.
        encoded.pop("labels", None)
        return encoded
    with torch.device("cpu"):
        return processor.apply_chat_template(
            [_turn(images, text) for images, text in zip(pictures, questions, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=padding,
        )


def _turn(images: list[Any], question: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


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
