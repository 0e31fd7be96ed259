"""What a run says of itself: log lines, curves, TensorBoard and W&B, the share of the machine's peak.

train_gpt2.py imports it; it imports command_line/ and model/. Start with run_log.py.
"""
