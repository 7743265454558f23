"""The old scripts' flags and summary keys."""
