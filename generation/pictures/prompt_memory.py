"""Embeddings of prompts that may come again."""

import threading
from collections import OrderedDict

from torch import Tensor

Embedding = tuple[Tensor, ...]
"""What the transformer of a text-to-image model sees of a prompt."""

CAPACITY = 32
"""Most prompts; those of FLUX.1 take 2 MB each, those of FLUX.2-klein 8 MB."""


class PromptMemory:
    """The embeddings of the most recent prompts. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._embeddings: OrderedDict[str, Embedding] = OrderedDict()

    def __contains__(self, prompt: str) -> bool:
        with self._lock:
            return prompt in self._embeddings

    def get(self, prompt: str) -> Embedding | None:
        """Returns a prompt's embedding, if it is still there, and makes it the most recent."""
        with self._lock:
            if prompt not in self._embeddings:
                return None
            self._embeddings.move_to_end(prompt)
            return self._embeddings[prompt]

    def add(self, prompt: str, embedding: Embedding) -> None:
        """Keeps an embedding, and forgets the least recent one if there are too many."""
        with self._lock:
            self._embeddings[prompt] = embedding
            if len(self._embeddings) > CAPACITY:
                self._embeddings.popitem(last=False)

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._embeddings.clear()
