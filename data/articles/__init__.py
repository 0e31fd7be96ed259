"""The .pkl of articles: read without running code, mapped into memory through a cache beside it, and written.

Loading and the writers of data/building import it; it knows the foot of data/ only. Start with corpus.py.
"""
