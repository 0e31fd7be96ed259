"""Command lines: tables of flags, how they are read and checked, what Ctrl-C does, and OpenMP's spin.

Programs, arguments.py, training, generation and tasks import it; it imports the model's configuration, nothing heavy.
Start with flags.py (what a flag is), then parser.py and the table of the program at hand.
"""

from command_line.openmp import bound_spinning

bound_spinning()  # here, since every program that computes imports its command line before torch
