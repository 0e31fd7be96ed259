"""Command lines: tables of flags, how they are read and checked, and what Ctrl-C does.

Programs, arguments.py, training, generation and tasks import it; it imports the model's configuration, nothing heavy.
Start with flags.py (what a flag is), then parser.py and the table of the program at hand.
"""
