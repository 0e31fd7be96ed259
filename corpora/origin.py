"""What files were made from, kept in a file beside them: a command does not take the place of another one's output."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from corpora.atomic import atomic_file, folder_made
from corpora.strict_json import json_text

_MADE, _UNDER_WAY = "made from", "being made from"


class Origin:
    """The input and the flags that decide what a command writes.

    The command may be given again, to go on where it stopped or because its input has changed; with other flags or
    another input, and where nothing says what the files are, it takes --overwrite. While it is at work the record has
    what was there before and what is being made, and either command may follow.
    """

    def __init__(
        self,
        path: Path,
        inputs: Mapping[str, Sequence[Path]],
        flags: Mapping[str, object],
        there: Callable[[], Iterable[Path]],
        elsewhere: str,
        overwrite: bool,
    ) -> None:
        """`path`: the record, beside the files. `inputs`: flags and the files and folders they name; `flags` others.

        `flags` has those that are given and have an effect on what is written. `there` gives the files that are there
        and would be replaced. `elsewhere`: flags that name another output.
        """
        self.path, self._there, self._elsewhere, self._overwrite = path, there, elsewhere, overwrite
        self._now = {flag: [str(each.resolve()) for each in paths] for flag, paths in inputs.items()}
        self._now.update({flag: [] if value is True else [str(value)] for flag, value in flags.items()})

    def check(self) -> None:
        """Raises ValueError if one of the files to be written is there and is another command's."""
        found = next(iter(self._there()), None)
        if found is None or self._overwrite:
            return
        record = self._record()
        known = [record[state]["flags"] for state in (_MADE, _UNDER_WAY) if state in record]
        if self._now in known:
            return
        what = f"made {self._differences(known[0])}" if known else "and nothing says what it was made from"
        raise ValueError(
            f"{found}: is there already, {what}; name another {self._elsewhere}, or replace it with --overwrite"
        )

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around the writing of the files. At the end those of the command before that are not among them are removed.

        After an error the record is what it was, unless files have been replaced or have come: then both commands may
        follow.
        """
        before, former, untouched = self._record().get(_MADE), self._text(), self._stats()
        state = {_UNDER_WAY: {"flags": self._now}, **({_MADE: before} if before else {})}
        folder = self.path.parent
        with folder_made(folder):
            text = self._write(state)
            try:
                yield
            except BaseException:
                if self._text() == text and self._stats() == untouched:
                    self._restore(former)
                raise
            files = [str(path.relative_to(folder)) for path in self._there()]
            self._write({_MADE: {"flags": self._now, "files": files}})
            _remove(folder, set((before or {}).get("files", ())) - set(files))

    def _stats(self) -> dict[Path, tuple[int, int]]:
        return {path: (stat.st_ino, stat.st_mtime_ns) for path in self._there() for stat in [path.stat()]}

    def _record(self) -> dict[str, Any]:
        """Empty where there is none, or none of ours."""
        try:
            record = json.loads(self._text() or "{}")
            states = {state: record[state] for state in (_MADE, _UNDER_WAY) if state in record}
            words = [word for state in states.values() for words in state["flags"].values() for word in words]
            return states if all(isinstance(word, str) for word in words) else {}
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def _write(self, state: Mapping[str, Any]) -> str:
        text = json_text(state, indent=2) + "\n"
        with atomic_file(self.path) as file:
            file.write(text.encode("utf-8"))
        return text

    def _restore(self, former: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: that both commands may follow does no harm
            if not former:
                self.path.unlink()
                return
            with atomic_file(self.path) as file:
                file.write(former.encode("utf-8"))

    def _differences(self, before: Mapping[str, Sequence[str]]) -> str:
        told = []
        for flag in dict.fromkeys([*self._now, *before]):
            was, now = (" ".join([flag, *flags[flag]]) if flag in flags else "" for flags in (before, self._now))
            if was != now:
                told.append(f"with {was} (now {now[len(flag) + 1 :] or 'without'})" if was else f"without {now}")
        return " and ".join(told)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for path in (folder / name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()):
        with contextlib.suppress(OSError):
            path.unlink()
        if path.parent != folder:
            with contextlib.suppress(OSError):  # it is not empty
                path.parent.rmdir()
