"""What a user can put right, in one line; and what every script does with it."""
import argparse
import contextlib
import errno
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
    Decorator for a script's main(): what a user can put right, a full disk, a file that cannot be had
    and memory that does not do included, becomes one line on stderr and exit code 2; Ctrl-C becomes
    one and 130. What the terminal cannot show is shown as an escape, whoever stops reading (`| head`)
    ends it quietly, and a stream that was closed is as good as /dev/null.
    """
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        open_streams()
        code = 2
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            drop(sys.stdout)
            sys.exit(1)
        except OSError as e:
            error = f"{e.filename or 'reading or writing'}: {e.strerror or first_line(e)}" + \
                ": make room, or choose another place" * (e.errno in (errno.ENOSPC, errno.EDQUOT))
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            error = f"out of memory ({first_line(e)}): ask for less at once"
        except UserError as e:
            error = str(e)
        except KeyboardInterrupt:
            error, code = "interrupted", 130
        try:
            sys.stdout.flush()
        except OSError:  # a full disk: what is left in the buffer would fail again at the exit
            drop(sys.stdout)
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(code)
    return wrapped


def open_streams():
    """
    Standard input, output and errors that are open: a file that is opened later would get the number
    of one that was closed, and all that is printed after that, by children too.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop(stream):
    """Let all that goes to a stream vanish from here on."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
