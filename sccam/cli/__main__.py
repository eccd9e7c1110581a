"""python -m sccam.cli"""

from sccam.cli import main

if __name__ == "__main__":
    main()
