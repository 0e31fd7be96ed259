"""What a program writes into forward beyond torch: blocks, scopes, loops, conditionals, custom ops, host calls.

ops.py publishes it; it imports engine/tracing and the foot of poptorch/. Start with blocks.py.
"""
