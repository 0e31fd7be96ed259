"""poptorch.DataLoader: batches of a call, combined in this process or in one that works ahead.

poptorch/__init__ publishes it; it imports options/ and reports/. Start with dataloader.py.
"""
