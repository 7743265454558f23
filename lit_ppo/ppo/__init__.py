"""The learner: rollout, advantages, losses, one PPO iteration."""
