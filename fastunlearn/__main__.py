"""`python -m fastunlearn`: the command line."""

from fastunlearn.cli import main

if __name__ == "__main__":
    main()
