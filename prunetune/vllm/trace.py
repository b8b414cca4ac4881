"""What was kept of each picture, for whoever compares engines; off unless asked for."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kept:
    """One picture.

    Attributes:
        total: Its tokens before pruning.
        alive: Those that stay, ascending.
    """

    total: int
    alive: tuple[int, ...]


@dataclass
class Notes:
    """What the models of this process have kept.

    Attributes:
        on: Whether notes are taken.
        kept: In the order in which pictures were encoded.
    """

    on: bool = False
    kept: list[Kept] = field(default_factory=list)


NOTES = Notes()
