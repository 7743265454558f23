"""Markets and environments: the market as tensors (`market`), its scalar twin, and gymnasium in both directions."""
