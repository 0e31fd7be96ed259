"""Several micro-batches run as one, where that can be proven exact.

Execution imports it, and running/ takes what it makes; it imports stages.py, tracing/, device/. Start with stacking.py.
"""
