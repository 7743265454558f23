"""Weights that ship with the package; `lit_ppo.store.prior_weights` reads them."""
