"""What a user can put right, in one line; and what every script does with it."""
import argparse
import functools
import importlib
import os
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
    """
    Decorator for a script's main(): what a user can put right, a full disk and a file that cannot be
    had included, becomes one line on stderr and exit code 2. What the terminal cannot show is shown
    as an escape, and whoever stops reading (`| head`) ends it quietly.
    """
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            sys.exit(1)
        except OSError as e:
            error = f"{e.filename or 'reading or writing'}: {e.strerror or first_line(e)}"
        except UserError as e:
            error = str(e)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return wrapped


def first_line(e):
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def is_out_of_memory(e):
    """Did an exception of torch's say that memory, of the machine or of a device, ran out?"""
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or any(
        said in str(e) for said in ("not enough memory", "can't allocate memory", "out of memory",
                                    "Storage size calculation overflowed", "size is too large",
                                    "numel: integer multiplication overflow"))


def library(name, package):
    """The module `name`, imported; UserError naming the package to install if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the {package} library: pip install {package}") from None
