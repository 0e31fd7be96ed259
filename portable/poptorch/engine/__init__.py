"""The engine: traces a program once and runs it. No contract of PopTorch's is known here, only the foot of poptorch/.

Execution and operations import it. A program's way: tracing/ (start there), stages.py, passes/, running/, updating/.
"""
