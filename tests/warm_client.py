"""Has the server of warm_process.py do what an interpreter would, and ends as that does (warm_process.interpreter).

Arguments: the file descriptor of the connection to the server, the interpreter, and what follows it. The interpreter
itself does what is neither a program nor a module nor a command: what it reads from standard input, say.
"""

import json
import os
import signal
import socket
import sys


def main() -> int:
    server, python, *words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-c", "-m")):
        os.execv(python, [python, *words])
    status, theirs = socket.socketpair()
    request = json.dumps({"words": words, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    with socket.socket(fileno=int(server)) as connection, theirs:
        socket.send_fds(connection, [request], [*range(3), theirs.fileno()])
    with status.makefile("r") as messages:
        _, code = int(messages.readline()), int(messages.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
