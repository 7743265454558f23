"""Markets whose optimum is known: the optimum, simple rules, training on them, and the score of an agent."""
