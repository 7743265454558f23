"""A trained policy on new bars: bar by bar with a state file, or exported for programs without lit-ppo."""
