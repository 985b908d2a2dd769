"""`python -m bestiary`: the command line."""

from bestiary.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
