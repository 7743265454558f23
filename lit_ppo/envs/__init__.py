"""Markets and environments."""
