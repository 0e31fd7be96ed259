"""A training run and what it is made of: data, model, optimizer and executor put together, its state, its log.

train_gpt2.py has the loop and imports it, inference_gpt2.py too; it imports all rooms below. Start with run.py.
"""
