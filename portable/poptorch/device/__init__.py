"""Devices: the precision policy, memory, rounding and kernels.

Execution and the engine import it; it imports messages and nothing above. Start with policy.py.
"""
