"""The package's version, which artifacts remember."""

__version__ = "0.1.0"
