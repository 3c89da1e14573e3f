"""`python -m lessen` is the `lessen` command."""

from lessen.cli import main

if __name__ == "__main__":
    main()
