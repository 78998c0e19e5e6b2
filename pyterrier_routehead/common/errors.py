"""Errors that callers may want to catch.

A wrong type of an argument is a TypeError, a wrong value a ValueError; both name the argument, and constructors raise
them where they can. A frame that lacks columns raises PyTerrier's ``InputValidationError``. What is left has a class
here.
"""


class NotFittedError(RuntimeError):
    """A re-ranker that has nothing to rank by yet; the message lists what it can be given by name."""


class ModelNotFoundError(OSError):
    """A model that cannot be had; the message names it, what was tried and what to do."""


class ListTooLongError(ValueError):
    """A prompt that takes more positions than the model's context has."""


class UnsupportedArchitectureError(ValueError):
    """A model whose attention cannot be read exactly; the message names the architecture and the reason."""


class ArtifactError(ValueError):
    """A head set or router that cannot be read, written or packed; the message names the file."""


class StoreError(ValueError):
    """A store of head scores, or a file in one, that cannot be read or written; the message names it."""


class MismatchError(ValueError):
    """Head sets, head scores or a tokenizer that belong to another model or way of reading; the message names both."""
