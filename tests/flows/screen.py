"""A terminal's screen, as far as our bars use one: what a person sees after what was written."""

import re

_PIECES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|.", re.DOTALL)


class Screen:
    """Lines of `columns` characters; text that is longer continues in the next line.

    Source: ECMA-48: EL clears a line, CUU goes up, CR to its begin; as xterm does, a line that is
    just full wraps with the next character.
    """

    def __init__(self, columns: int) -> None:
        self._columns, self._lines = columns, [""]
        self._row = self._column = 0

    def write(self, text: str) -> "Screen":
        for found in _PIECES.finditer(text):
            argument, command, control, plain = found.groups()
            if command:
                self._command(command, argument)
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._down()
            elif plain:
                for character in plain:
                    self._put(character)
        return self

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._lines if line.strip()]

    def _command(self, command: str, argument: str) -> None:
        if command == "A":
            self._row = max(0, self._row - int(argument or 1))
        elif command == "K" and argument == "2":
            self._lines[self._row] = ""
        elif command not in "mhlK":  # colours, the cursor's look
            raise AssertionError(f"the screen does not know ESC[{argument}{command}")

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")

    def _put(self, character: str) -> None:
        if self._column == self._columns:
            self._column = 0
            self._down()
        line = self._lines[self._row].ljust(self._column)
        self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1
