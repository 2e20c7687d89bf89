"""Entry point of the `taskgen` command and of `python -m taskgen`."""

from taskgen.signals import install_signal_handlers


def main() -> None:
    """Install the signal handlers, then import and run the command line."""
    install_signal_handlers()
    from taskgen import cli

    cli.main()


if __name__ == "__main__":
    main()
