"""What a config saves on a device, in words and as rows of a table."""

from prunetune.provenance import Pair, Saving


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
    return [(name, _short(pair.unpruned, n), _short(pair.pruned, n)) for name, pair, n in rows]


def saved_words(saving: Saving) -> str:
    """Return a sentence on whether it pays, and where that was measured."""
    low, high = saving.faster_interval
    span = f"{saving.faster:.2f}x ({low:.2f} to {high:.2f})"
    if low > 1:
        pays = f"requests are faster, {span}"
    elif high < 1:
        pays = f"requests are slower, {span}: it does not pay at these lengths"
    else:
        pays = f"requests take as long, {span}, which is no difference beyond the spread"
    money = ""
    if saving.million_requests is not None:
        money = f"; a million requests {_money(saving.million_requests)}"
    return f"Measured here: {pays}{money}. {where(saving)}"


def where(saving: Saving) -> str:
    """Return what was measured, and on what."""
    return (
        f"{saving.requests} requests of the data ({saving.image_tokens:.0f} image and "
        f"{saving.text_tokens:.0f} text tokens on average), {saving.rounds} rounds, one at a time, "
        f"on {saving.device} in {saving.dtype}."
    )


def _money(pair: Pair) -> str:
    apart = pair.unpruned - pair.pruned
    word = "save" if apart >= 0 else "cost"
    more = "" if apart >= 0 else " more"
    return f"{word} {_short(abs(apart), 3)}{more} of {_short(pair.unpruned, 3)}"


def _short(value: float, digits: int) -> str:
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"
