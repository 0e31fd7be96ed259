"""Evaluation: published protocols, each exact and named, and the programs that users call by path.

Nothing imports it; it imports every room of the application. Start with evaluation.py, then protocols.py.
"""
