"""Trainings and proofs on markets whose answer is known: oracles, nulls, the audit."""
