"""The optional optimisations; each one vanishes when its YAML entry is deleted."""
