"""forward() to a graph, once, and what a graph cannot hold by itself: markers, regions, losses.

The rest of the engine, operations and execution import it; it imports none of them. Start with export.py.
"""
