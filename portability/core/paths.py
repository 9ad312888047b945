"""Where the project's own files are: inside an installed package, or beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
EMBEDDED = PACKAGE / "embedded"  # hosts/ and data/ shipped with the project
PORTABLE = ("embedded:", "package:")  # beginnings of a host's source that other machines have, too


def bundled(name: str) -> Path:
    """The folder of configuration files ("conf"), in a wheel inside the package, in a checkout beside it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
