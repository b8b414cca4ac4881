"""Models by name: aliases, hub ids, folders and the embedded ``tiny``."""

from prunetune.models.aliases import ALIASES, Alias
from prunetune.models.load import EMBEDDED, LoadedModel, load_model

__all__ = ["ALIASES", "EMBEDDED", "Alias", "LoadedModel", "load_model"]
