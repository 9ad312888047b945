"""The command `portability derive HOST ...`: hosts of conf/host that are made of other hosts by a recipe,
once, into the cache: trained further, thinned, narrowed, noised, quantised, or in a hidden basis.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from portability.config.compose import composed, options
from portability.config.own import is_study_file
from portability.config.study import checked, find_host
from portability.core.command_line import carry_out
from portability.core.errors import UserError, validate_choice
from portability.derivation import derive
from portability.options import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the hosts that are named; gives back the exit code."""
    return carry_out(parser("derive"), work, arguments)


def work(asked: Namespace) -> None:
    """Make the hosts that are named.

    Raises:
        UserError: none is named, or one cannot be made.
    """
    names = [word for word in asked.words if "=" not in word and not is_study_file(word)]
    if not names:
        raise UserError("name a host to make; portability list hosts names them")
    settings = [word for word in asked.words if word not in names]
    for folder in asked.config_dir:
        settings += ["--config-dir", str(folder)]
    conf = checked(composed(options(settings)))
    for name in names:
        if not (conf.host.get(validate_choice(name, conf.host, "host")) or {}).get("derive"):
            raise UserError(f"host '{name}' is not derived from another: its file of conf/host has no key "
                            "derive")
        sys.stdout.write(f"{name}: {find_host(conf, name, derive).source}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
