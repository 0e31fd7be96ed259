"""Several processes of one program: who holds what, and what they tell each other over torch.distributed.

running/, updating/ and execution import it; it imports nothing of the engine. Start with layout.py.
"""
