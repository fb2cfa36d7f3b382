"""``python -m rhovae``."""

from rhovae.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
