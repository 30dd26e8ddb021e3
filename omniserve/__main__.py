"""`python -m omniserve` is the `omniserve` command."""

import sys

from omniserve.cli import main

sys.exit(main())
