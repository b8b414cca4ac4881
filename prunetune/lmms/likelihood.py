"""How likely a continuation is, after a prompt whose pictures are pruned."""

from typing import Any

import torch


@torch.inference_mode()
def continuation_loss(model: Any, tokenizer: Any, inputs: Any, text: str) -> tuple[float, bool]:
    """Return a continuation's loss, and whether every token of it is the likeliest.

    The loss is the mean over its tokens of -log p: what lmms-eval calls a likelihood, and takes
    the least of. The prompt is prefilled, and so pruned, as when it is answered; the continuation
    is then fed with the cache.

    Args:
        model: With or without a config applied.
        tokenizer: Of the model.
        inputs: One prompt, on the model's device.
        text: At least one token.
    """
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = ids.to(inputs["input_ids"].device)
    first = model(**inputs, use_cache=True)
    logits = [first.logits[:, -1:]]
    if ids.shape[1] > 1:
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, :-1])], dim=1)
        later = model(
            input_ids=ids[:, :-1],
            attention_mask=mask,
            past_key_values=first.past_key_values,
            use_cache=True,
        )
        logits.append(later.logits)
    scores = torch.cat(logits, dim=1).float().log_softmax(-1)
    told = scores.gather(-1, ids[..., None]).mean()
    return -float(told), bool((scores.argmax(-1) == ids).all())
