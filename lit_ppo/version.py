"""The version of this package, on the lowest floor: every result names it."""

__version__ = "0.1.0"
