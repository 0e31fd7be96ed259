"""`python3 -m examples_utils benchmark …`"""

import sys

from .benchmark.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
