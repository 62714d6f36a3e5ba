"""Exit statuses of ``tidemill``, as data: code and docs/reference/commands.md use this table."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means."""

    sentence: str

    def __new__(cls, number: int, sentence: str) -> "ExitCode":
        made = int.__new__(cls, number)
        made._value_ = number
        made.sentence = sentence
        return made

    DONE = 0, "Done."
    FIXABLE = 1, "A problem that you can fix; one line says which. `demo`: a part of the ring is broken."
    USAGE = 2, "Wrong usage, or a change that waits for `--yes` where nobody can be asked."
    FAULT_FOUND = 3, "The command did its work and found a fault: records are missing, a replay is not equal, topics differ."
    NOT_YET = 4, "What was asked for is under way and not complete: parts have yet to report an erasure."
    BUG = 70, "A bug in Tidemill, with its traceback: please report it."
    STOPPED = 130, "Stopped by Ctrl-C or SIGTERM before it was done."
