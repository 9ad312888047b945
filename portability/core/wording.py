"""Numbers with their nouns, and times."""


def counted(number: int, noun: str) -> str:
    """A number and its noun, which takes an s unless there is one.

    Example:
        >>> counted(1, "worker"), counted(1200, "run")
        ('1 worker', '1,200 runs')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
