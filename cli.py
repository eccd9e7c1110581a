"""Runs `sccam` from a checkout, without installing: python cli.py --help."""

from sccam.cli import main

if __name__ == "__main__":
    main()
