"""``python -m perdure``: the command, also under torch's and accelerate's launchers."""

from perdure.cli import main

if __name__ == "__main__":
    main()
