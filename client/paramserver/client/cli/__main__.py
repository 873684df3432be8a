"""`python -m paramserver.client.cli`: the same as `paramserver`."""

from paramserver.client.cli.entry import main

if __name__ == "__main__":
    main()
