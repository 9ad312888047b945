"""The studies of a results folder."""

from pathlib import Path

from portability.store.manifests import no_study
from portability.store.study import Store


def studies(results: Path | str) -> list[Store]:
    """The studies below a results folder; the folder itself may be a study.

    Raises:
        UserError: there is none.
    """
    root = Path(results)
    if (root / "manifests").is_dir():
        return [Store(root)]
    found = [Store(path.parent) for path in sorted(root.glob("*/manifests")) if path.is_dir()]
    if not found:
        raise no_study(root)
    return found
