"""A run's folder on disk: what is written, who may write, what it was made with, and whether it may go on."""
