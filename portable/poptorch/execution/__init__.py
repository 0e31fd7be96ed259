"""The executor that trainingModel and inferenceModel return: compiling, calling, weights to and fro, files.

poptorch/__init__ publishes it; it imports every other room. Start with executor.py, then compilation.py and session.py.
"""
