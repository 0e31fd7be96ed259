"""The data sets behind --train-path, all with one interface, and the order of their samples.

Training imports it; it imports the rooms of the formats. Start with datasets.py.
"""
