"""Numbers with their nouns, and times."""

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """A number and its noun, which takes an s unless there is one.

    Example:
        >>> counted(1, "worker"), counted(1200, "run")
        ('1 worker', '1,200 runs')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers, those that follow each other by the first and last alone.

    Example:
        >>> spans([3, 0, 1, 2, 5, 5])
        '0-3, 5'
    """
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, span)) for span in found)


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
