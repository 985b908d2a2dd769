"""`python -m bestiary`: the command line."""

import sys

from bestiary.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
