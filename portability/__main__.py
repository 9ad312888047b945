"""`python -m portability COMMAND`, as `portability COMMAND`."""

import sys

from portability.cli import main

sys.exit(main())
