"""Errors that callers may want to catch."""


class ListTooLongError(ValueError):
    """A prompt that takes more positions than the model's context has."""


class UnsupportedArchitectureError(ValueError):
    """A model whose attention cannot be read exactly; the message names the architecture and the reason."""


class StoreError(ValueError):
    """A store of head scores, or a file in one, that cannot be read; the message names it."""


class MismatchError(ValueError):
    """A head set or head scores that do not belong to a model or to a way of reading; the message names both sides."""
