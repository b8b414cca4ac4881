"""What a config saves on a device, in words and as rows of a table."""

from prunetune.provenance import Saving

NOISE = "within noise"


def saved_rows(saving: Saving) -> list[tuple[str, str, str]]:
    """Return a row a figure: its name, unpruned, pruned."""
    rows = [
        ("prefill of the language model, ms", saving.prefill_ms, 4),
        ("time to the first token, ms", saving.first_ms, 4),
        (f"request of {saving.new_tokens} new tokens, ms", saving.total_ms, 4),
        ("KV cache after the prefill, MiB", saving.kv_mib, 4),
    ]
    if saving.peak_mib is not None:
        rows.append(("peak memory, MiB", saving.peak_mib, 5))
    if saving.million_requests is not None:
        price = f"{saving.price_per_hour:g} an hour"
        rows.append((f"a million requests at {price}", saving.million_requests, 4))
    found = [(name, _short(pair.unpruned, n), _short(pair.pruned, n)) for name, pair, n in rows]
    if saving.million_requests is not None and saving.told == NOISE:
        found[-1] = (*found[-1][:2], NOISE)
    return found


def saved_words(saving: Saving) -> str:
    """Return a sentence on whether it pays, and where that was measured."""
    low, high = saving.faster_interval
    span = f"{saving.faster:.2f}x ({low:.2f} to {high:.2f})"
    if saving.told == "faster":
        pays = f"requests are faster, {span}"
    elif saving.told == "slower":
        pays = f"requests are slower, {span}: it does not pay at these lengths"
    else:
        pays = f"requests take as long, {span}, which is no difference beyond the spread"
    money = ""
    if saving.million_requests is not None:
        money = f"; a million requests {_money(saving, saving.million_requests.unpruned)}"
    return f"Measured here: {pays}{money}. {where(saving)}"


def where(saving: Saving) -> str:
    """Return what was measured, and on what."""
    return (
        f"{saving.requests} requests of the data ({saving.image_tokens:.0f} image and "
        f"{saving.text_tokens:.0f} text tokens on average), {saving.rounds} rounds, one at a time, "
        f"on {saving.device} in {saving.dtype}."
    )


def _money(saving: Saving, before: float) -> str:
    """Return what is saved of a cost, from the rounds' ratios as the time is."""
    if saving.told == NOISE:
        return f"cost {_short(before, 3)}, and the difference is {NOISE}"
    ratios = (saving.faster, *saving.faster_interval)
    mean, low, high = (before * (1.0 - 1.0 / ratio) for ratio in ratios)
    word, more = "save", ""
    if saving.told == "slower":
        word, more, mean, low, high = "cost", " more", -mean, -high, -low
    span = f"({_short(low, 3)} to {_short(high, 3)})"
    return f"{word} {_short(mean, 3)}{more} of {_short(before, 3)} {span}"


def _short(value: float, digits: int) -> str:
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"
