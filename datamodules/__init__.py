"""From a CSV of bars to the tensors of one fold. Knows no policy."""
