"""What a restorer is."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from prunetune.tokens import ImageGeometry, top_indices


class Restorer(BaseModel):
    """Base of all restorers: a frozen pydantic model whose fields are its hyperparameters.

    A restorer chooses the keep index of one image's patches so that exactly ``count`` of them are
    alive *after* restoring, and may rewrite the states of kept patches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    summary: ClassVar[str] = ""
    since: ClassVar[int] = 1
    """Version of the config file that it came with."""
    name: str

    @classmethod
    def chooses(cls) -> bool:
        """Tell whether it chooses what is kept by itself, not by the highest scores."""
        return cls.keep is not Restorer.keep

    def keep(self, scores: Tensor, count: int, geometry: ImageGeometry) -> Tensor:
        """Return the keep index, ``[count]`` int64 ascending, into the image's alive patches.

        Args:
            scores: ``[visual]`` float32 importance.
            count: Patches alive after restoring, at most ``visual``.
            geometry: Of the ``visual`` patches.
        """
        return top_indices(scores, count)

    def blend(
        self, states: Tensor, scores: Tensor, keep: Tensor, geometry: ImageGeometry, weights: Tensor
    ) -> Tensor | None:
        """Return new states of the kept patches, ``[count, d]``, or None to leave them as they are.

        Args:
            states: ``[visual, d]`` states of all patches alive before the stage.
            scores: ``[visual]`` float32 importance.
            keep: ``[count]`` int64, what ``keep`` returned.
            geometry: Of the ``visual`` patches.
            weights: ``[visual]`` float32 above 0, to weigh states by: the scorer's own score where
                the stage has a single scorer of positive weight, else the exponential of the
                stage's weighted sum.
        """
        return None

    def least_retention(self) -> float:
        """Return the smallest share of the patches alive before the stage that it can leave."""
        return 0.0
