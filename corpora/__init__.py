"""Text in files: which files a corpus is, the pieces it is cut into, the documents in them; files that appear whole.

The lowest room: every other may import it, it imports none and knows no token. Start with sources.py.
"""
