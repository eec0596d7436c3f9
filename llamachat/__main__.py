"""`python -m llamachat` is `llamachat`."""

from llamachat.cli.app import main

if __name__ == "__main__":
    main()
