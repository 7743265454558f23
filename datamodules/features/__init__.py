"""Causal features of bars, scaled on train."""
