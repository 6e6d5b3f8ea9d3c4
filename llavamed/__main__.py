"""`python -m llavamed`, and so `torchrun -m llavamed`."""

from llavamed.cli import main

if __name__ == "__main__":
    main()
