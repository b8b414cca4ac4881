"""What a verb calls to say how far it is."""

from collections.abc import Callable

Show = Callable[..., None]
"""Takes (name, done, total=None, detail=""); each new name begins a new phase."""
