"""`python3 -m examples_utils benchmark`: runs the benchmarks of YAML files and collects their figures.

spec reads the files and entry what each says, variants makes commands of them, set_up and process run them, metrics
reads their logs, results and junit write them down, suite does all of it in turn, command_line is what a user types.
Only `python3 -m examples_utils` and ../benchmarks import it; it imports no other package here. Start with suite.py.
"""
