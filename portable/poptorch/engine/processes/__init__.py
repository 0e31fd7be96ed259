"""Several processes of one program: who holds what, what they tell each other over torch.distributed, and who hangs.

running/, updating/ and execution import it; it imports nothing of the engine. Start with layout.py.
"""
