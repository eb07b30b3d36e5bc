"""What a user can put right, in one line; and what every script does with it."""
import argparse
import functools
import importlib
import sys


class UserError(Exception):
    """Something the user can put right: shown as one line, exit code 2."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # what is quoted may hold newlines


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message):
        raise UserError(f"{message}: see --help")


def exits_cleanly(main):
    """Decorator for a script's main(): a UserError becomes one line on stderr and exit code 2."""
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            sys.exit(2)
    return wrapped


def first_line(e):
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def library(name, package):
    """The module `name`, imported; UserError naming the package to install if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the {package} library: pip install {package}") from None
