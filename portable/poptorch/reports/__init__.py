"""What POPLAR_ENGINE_OPTIONS asks for: where the time of a run went and what its memory held, as a
page with its numbers, as text and as a trace.

Execution and loading import it; it imports engine/running and options/. Start with auto_report.py.
"""
