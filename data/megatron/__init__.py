"""Megatron-LM's memory-mapped corpus: its files, its order of samples, the data set; loops.cpp has the inner loops.

data/loading and data/building import it; it knows the foot of data/ only. Start with files.py, then order.py.
"""
