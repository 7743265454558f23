"""What trained weights are worth: evaluation, performance, significance, replay."""
