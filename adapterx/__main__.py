"""``python -m adapterx``: the command line."""

from adapterx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
