"""`everstate` and ``python -m everstate``."""

from everstate.cli import main

if __name__ == "__main__":
    main()
