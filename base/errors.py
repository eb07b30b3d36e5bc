"""Errors that users can fix, shown as one line, and the argument parsing that all scripts share."""
import argparse
import contextlib
import errno
import functools
import importlib
import math
import os
import sys


class UserError(Exception):
    """An error that the user can fix: shown as one line, exit code 2."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # quoted input may contain newlines


def say_once(line):
    """Print on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def once(pairs):
    """A dict of (flag, value) pairs. A flag given twice is a UserError."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"--{key}: given twice: leave one out")
        found[key] = value
    return found


class Parser(argparse.ArgumentParser):
    """
    argparse with one-line errors. Giving an option twice is an error, except for lists (nargs="+"), which
    are extended. means: {option: (where it has an effect, in words; a test of that on the arguments)}.
    Giving an option that has no effect is an error too.
    """

    def __init__(self, *args, means=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.means = dict(means)
        for name in (None, "store"):
            self.register("action", name, Store)

    def parse_known_args(self, args=None, namespace=None):
        self.given = {}
        found, more = super().parse_known_args(args, namespace)
        for name, (where, so) in self.means.items():
            if getattr(found, name) != self.get_default(name) and not so(found):
                option = next(a.option_strings[0] for a in self._actions if a.dest == name)
                self.error(f"{option}: means something with {where} only: leave it out")
        return found, more

    def error(self, message):
        raise UserError(f"{message}: see --help")


class Store(argparse.Action):
    """Parser's "store" action."""

    def __call__(self, parser, namespace, values, option=None):
        if option and self.nargs == "+":
            values = parser.given.get(self.dest, []) + values
        elif option and self.dest in parser.given:
            parser.error(f"{option}: given twice, leave one out")
        parser.given[self.dest] = values
        setattr(namespace, self.dest, values)


def is_number(value, low=-math.inf, high=None, kind=float):
    """
    Is `value` between `low` and `high`, inclusive? By default `high` is 2**53 for int and the largest
    float for float. NaN, infinities and -0.0 do not count as numbers. An int may have any length.
    """
    high = (2**53 if kind is int else sys.float_info.max) if high is None else high
    return max(low, -sys.float_info.max) <= value <= high and (value != 0 or math.copysign(1, value) > 0)


def number(kind, low, high=None):
    """For argparse's `type`: an int or float that passes is_number()."""
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not is_number(value, low, high, kind):
            raise argparse.ArgumentTypeError(
                f"{text[:60]}: must be a {'whole' if kind is int else 'finite'} number, at least "
                f"{low:g}" + (f" and at most {high:g}" if high else ""))
        return value
    return read


def exits_cleanly(main):
    """
    Decorator for a script's main(). Errors that a user can fix become one line on stderr and exit code 2.
    These include a full disk, an unreadable file and lack of memory. Ctrl-C gives one line and exit code
    130. Printing never stops the work: characters that the terminal cannot show are escaped, and a closed
    pipe (`| head`) or a full disk does not end the script.
    """
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        had, code = (sys.stdout, sys.stderr), 2
        # a closed stream is None; the file opened in its place takes over its descriptor
        sys.stdout, sys.stderr = (Screen(s or open(os.devnull, "w")) for s in had)
        screen = sys.stdout
        try:
            result = main(*args, **kwargs)
            screen.flush()
            if screen.lost is None or isinstance(screen.lost, BrokenPipeError):
                return result
            error = in_words(screen.lost, "standard output")
        except OSError as e:
            error = in_words(e, "reading or writing")
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            error = f"out of memory ({first_line(e)}): ask for less at once"
        except UserError as e:
            error = str(e)
        except KeyboardInterrupt:
            error, code = "interrupted", 130
        finally:
            screen.flush()
            err, (sys.stdout, sys.stderr) = sys.stderr, had
        print(f"error: {error}", file=err, flush=True)
        sys.exit(code)
    return wrapped


class Screen:
    """An output stream that may fail (closed pipe, full disk). What is printed after that is lost."""

    def __init__(self, stream):
        self.stream, self.lost = stream, None  # lost: the first error; nothing is shown after it
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text=""):
        try:
            self.stream.write(text) if text else self.stream.flush()
        except OSError as e:
            self.lost = self.lost or e
            with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    flush = write


def in_words(e, otherwise):
    """An OSError as one line; `otherwise` stands in for a missing file name."""
    return f"{e.filename or otherwise}: {e.strerror or first_line(e)}" + \
        ": make room, or choose another place" * (e.errno in (errno.ENOSPC, errno.EDQUOT))


def first_line(e):
    """The first line of an exception's message, or its type if the message is empty."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def is_out_of_memory(e):
    """Does this exception mean that the machine or a device ran out of memory?"""
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or any(
        said in str(e) for said in ("not enough memory", "can't allocate memory", "out of memory",
                                    "Storage size calculation overflowed", "size is too large",
                                    "numel: integer multiplication overflow"))


def library(name, package):
    """Import and return the module `name`. If it is missing, a UserError names the package to install."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the {package} library: pip install {package}") from None
