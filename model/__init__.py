"""GPT-2: the network, its configuration and checkpoints, its placement on IPUs, its loss, its scores of texts.

Training, generation and tasks import it; it imports none of the other rooms.
Start with gpt2.py and config.py.
"""
