"""`python -m node` is `avenue`."""

import sys

from node.cli import main

sys.exit(main())
