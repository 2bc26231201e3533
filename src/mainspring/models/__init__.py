"""Models: where they come from, loading each once, keeping them within a budget of memory.

In: a model id. Out: a `Model` whose calls block and may come from several threads. Knows nothing of tasks' states or
stores.
"""

from mainspring.models.base import EmbeddingModel, Model, ModelInfo, Source
from mainspring.models.http import HttpEndpoint
from mainspring.models.manager import ModelManager

__all__ = ["EmbeddingModel", "HttpEndpoint", "Model", "ModelInfo", "ModelManager", "Source"]
