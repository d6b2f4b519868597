"""``python -m policyd.cli`` is policyctl."""

from policyd.cli import main

if __name__ == "__main__":
    main()
