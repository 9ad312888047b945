"""Numbers with their nouns."""


def counted(number: int, noun: str) -> str:
    """A number and its noun, which takes an s unless there is one.

    Example:
        >>> counted(1, "worker"), counted(1200, "run")
        ('1 worker', '1,200 runs')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"
