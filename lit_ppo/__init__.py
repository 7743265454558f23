"""Recurrent PPO for trading, trained by walk-forward, on PyTorch Lightning and Fabric.

Nothing is imported here: the light commands (`lit-ppo data`, `report`, `cache`) must start without torch.
"""

__version__ = "0.1.0"
