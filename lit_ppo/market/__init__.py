"""Bars as tensors, and the one definition of costs, rewards, books and baselines."""
