"""From documents to prepared corpora: tokenized piece by piece by many processes, deduplicated, split, written.

The programs in data/ import it, and evaluation its detokenizer. Start with corpus.py, then assembly.py.
"""
