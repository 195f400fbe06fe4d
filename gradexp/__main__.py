"""`python -m gradexp` is the same as `gradexp`."""

from gradexp.cli import main

if __name__ == "__main__":
    main()
