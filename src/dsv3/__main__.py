"""Start `dsv3` as `python -m dsv3`."""

from dsv3.cli import main

if __name__ == "__main__":
    main()
