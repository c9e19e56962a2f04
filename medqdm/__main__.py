"""``python -m medqdm``: the command line."""

from medqdm.cli import main

if __name__ == "__main__":
    main()
