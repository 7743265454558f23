"""A run's folder on disk: atomic writes, checkpoints, results, lock, provenance."""
