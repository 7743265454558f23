"""The command lines, their configuration and what it may name; `lit_ppo.cli` sends each command here."""
