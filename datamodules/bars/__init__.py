"""From a bar file to checked bars and their data card; no torch."""
