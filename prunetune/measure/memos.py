"""What trials need not compute again, bounded in memory: scores, cosines, selections."""

from torch import Tensor

_SMALL = 1 << 16


class Memos:
    """What need not be computed again, up to a bound whatever the number of samples.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int = 128 << 20) -> None:
        self._left = limit
        self._memos: dict[tuple[int, int], _Memo] = {}

    def of(self, index: int, image: int) -> dict[str, Tensor]:
        """Return the memo of one image of one sample."""
        return self._memos.setdefault((index, image), _Memo(self))

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; False where they are not left.

        What is large (cosines) leaves half of what is left to what is small (scores, selections).
        """
        if size > (self._left // 2 if size > _SMALL else self._left):
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Free what was reserved."""
        self._left += size


class _Memo(dict[str, Tensor]):
    def __init__(self, memos: Memos) -> None:
        super().__init__()
        self._memos = memos

    def __setitem__(self, key: str, value: Tensor) -> None:
        if key in self:
            del self[key]
        if self._memos.take(value.nbytes):
            super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._memos.give_back(self[key].nbytes)
        super().__delitem__(key)
