"""Rows of token ids in webdataset's tar files: read by number, and written.

data/loading/ and data/prepare.py import it; it knows no model. Start with rows.py.
"""
