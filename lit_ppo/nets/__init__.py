"""The networks: encoders, policies, start values, fused kernels."""
