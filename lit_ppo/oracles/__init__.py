"""Markets whose optimum is known: the optimum, and what simple rules earn there. No torch."""
