"""Evaluation: published protocols, each exact and named."""
