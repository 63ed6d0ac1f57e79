"""``python -m dfuser`` is the command ``dfuser``."""

from dfuser.cli.main import main

if __name__ == "__main__":
    main()
