"""Corpora to token ids, token ids to samples: the programs that users call by path, and a room for each format.

Training imports it; it imports corpora/ and tokenizer/. What all formats share stands here:
batches.py (what a sample is; start there), bad_data.py, cache_folder.py.
"""
