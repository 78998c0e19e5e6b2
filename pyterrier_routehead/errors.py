"""Errors that callers may want to catch."""


class ListTooLongError(ValueError):
    """A prompt that takes more positions than the model's context has."""


class UnsupportedArchitectureError(ValueError):
    """A model whose attention cannot be read exactly; the message names the architecture and the reason."""
