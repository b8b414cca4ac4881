"""What ``make test`` leaves to ``make test-families``."""

from first_families import FIRST, NAMES, further

from prunetune.families import FAMILIES


def test_the_first_are_families():
    assert set(FAMILIES) == NAMES
    assert FIRST < NAMES


def bases(names):
    """Return the classes of ``families/bases`` that families of these names are made of."""
    kinds = {kind for name in names for kind in FAMILIES.get(name).__mro__}
    return {kind for kind in kinds if kind.__module__.startswith("prunetune.families.bases.")}


def test_every_base_has_a_first_family():
    assert bases(FIRST) == bases(NAMES)
    # The twin: Pixtral's rows are nobody else's.
    assert bases(FIRST - {"mistral3"}) < bases(NAMES)


def test_only_what_a_first_family_shows_too_can_wait():
    cases = [
        ("a", ("llava", 1)),
        ("a", ("llama4", 1)),
        ("a", (["llama4"],)),
        ("b", ("llama4",)),
        ("b", ("video_llava",)),
        ("c", ()),
    ]
    assert further(cases) == [False, True, False, False, False, False]
    # Both at once: it is of the first one.
    assert further([("a", ("llava", "llama4")), ("a", ("llama4", "llama4"))]) == [False, True]
