"""What ``make test`` leaves to ``make test-families``."""

from first_families import FIRST, NAMES, further

from prunetune.families import FAMILIES


def test_the_first_are_families():
    assert set(FAMILIES) == NAMES
    assert FIRST < NAMES


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
