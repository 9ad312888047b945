"""The command `portability derive HOST ...`: hosts of conf/host that are made of other hosts by a recipe,
once, into the cache: trained further, thinned, narrowed, noised, quantised, or in a hidden basis.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from portability.config.compose import composed, options
from portability.config.own import is_study_file
from portability.config.study import checked, find_host
from portability.core.errors import UserError, validate_choice
from portability.derivation import derive

EXAMPLES = """examples:
  portability derive smollm2-135m-20l
  portability derive smollm2-135m-rt60 data_root=~/data
  portability derive --config-dir mine my-thinner-host"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the hosts that are named; 0 when all are there, 2 when the user must change something."""
    parser = argparse.ArgumentParser(
        prog="portability derive", description=__doc__.strip(), epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="HOST", help="hosts of conf/host with a key derive; and "
                        "settings as of portability run, such as data_root=FOLDER or a study's file")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], metavar="DIR",
                        help="a folder with host/ files of your own")
    asked = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    names = [word for word in asked.words if "=" not in word and not is_study_file(word)]
    if not names:
        parser.error("name a host to make")
    settings = [word for word in asked.words if word not in names]
    for folder in asked.config_dir:
        settings += ["--config-dir", folder]
    try:
        conf = checked(composed(options(settings)))
        for name in names:
            if not (conf.host.get(validate_choice(name, conf.host, "host")) or {}).get("derive"):
                raise UserError(f"host '{name}' is not derived from another: its file of conf/host has no "
                                "key derive")
            sys.stdout.write(f"{name}: {find_host(conf, name, derive).source}\n")
            sys.stdout.flush()
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
