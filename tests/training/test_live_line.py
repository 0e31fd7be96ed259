"""The progress line of a terminal: whoever prints finds it gone, and nothing is glued to it."""

import io
import sys

from training.log.live_line import LiveLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text):
    """The lines that a reader of the terminal has in the end."""
    lines = []
    for line in text.split("\n"):
        lines.append(line.split("\x1b[K")[-1].split("\r")[-1])
    return lines


def test_what_others_print_stands_on_lines_of_its_own(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with LiveLine(screen) as line:
        line.draw("step 1/9")
        print("saved step_1")
        line.draw("step 2/9")
        print("a note", file=sys.stderr)
        line.draw("step 3/9")
        line.draw("step 4/9")
    print("end")
    assert shown(screen.getvalue()) == ["saved step_1", "a note", "end", ""]
    assert screen.getvalue().count("step 4/9") == 1 and sys.stdout is screen and sys.stderr is screen


def test_elsewhere_nothing_is_drawn_and_nothing_replaced(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    with LiveLine(file) as line:
        line.draw("step 1/9")
        assert sys.stdout is file
    assert file.getvalue() == ""
