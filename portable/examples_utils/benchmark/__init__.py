"""`python3 -m examples_utils benchmark`: runs the benchmarks of YAML files and collects their figures.

spec reads the files, variants makes commands of them, process runs one, metrics reads its logs, results writes them
down, suite does all of it in turn, command_line is what a user types. Only `python3 -m examples_utils` imports it; it
imports no other package here. Start with suite.py.
"""
