"""What POPLAR_ENGINE_OPTIONS asks for: where the time of a run went, as text and as a trace.

Execution and loading import it; it imports engine/running and options/. Start with auto_report.py.
"""
