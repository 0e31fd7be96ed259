"""The calls of a compiled program: micro-batches through stages, gradients, anchors, outputs, random streams, timings.

passes/ and execution import it; it imports stages.py and device/. Start with runner.py.
"""
