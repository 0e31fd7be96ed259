"""Weight updates on the device: rules, state, loss scaling, in pieces that stay in the cache.

Execution and optim.py import it; of the engine it imports nothing else. Start with optimizer.py.
"""
