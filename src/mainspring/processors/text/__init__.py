"""Text processing: a pipeline of named steps over one text, several, or a document's bytes.

What comes in is Text or Binary, what goes out is TextOutput. Nothing here keeps state or touches a store; models come
through a callable, for their tokenizers alone.
"""

from mainspring.processors.text.processor import TextProcessor
from mainspring.processors.text.steps import STEPS

__all__ = ["STEPS", "TextProcessor"]
