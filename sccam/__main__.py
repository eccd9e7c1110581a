"""python -m sccam: the command line, where no script is on the path."""

from sccam.cli import main

if __name__ == "__main__":
    main()
