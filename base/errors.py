"""What a user can put right, in one line; and what every script does with it."""
import argparse
import contextlib
import errno
import functools
import importlib
import math
import os
import sys


class UserError(Exception):
    """Something the user can put right: shown as one line, exit code 2."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # what is quoted may hold newlines


def say_once(line):
    """Print, but of the processes that torchrun started on the first alone."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def once(pairs):
    """A dict of (flag, value) pairs, none of which may be given twice."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"--{key}: given twice: leave one out")
        found[key] = value
    return found


class Parser(argparse.ArgumentParser):
    """
    argparse, with errors of one line. One is an option given twice, unless it is a list (nargs="+"), which
    grows. means: {option: (where it means something, a function of the arguments: is that so?)}; elsewhere
    it is an error, too.
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
                self.error(f"--{name.replace('_', '-')}: means something with {where} only: leave it out")
        return found, more

    def error(self, message):
        raise UserError(f"{message}: see --help")


class Store(argparse.Action):
    """Parser's "store"."""

    def __call__(self, parser, namespace, values, option=None):
        if option and self.nargs == "+":
            values = parser.given.get(self.dest, []) + values
        elif option and self.dest in parser.given:
            parser.error(f"{option}: given twice, leave one out")
        parser.given[self.dest] = values
        setattr(namespace, self.dest, values)


def is_number(value, low=-math.inf, high=None, kind=float):
    """
    Is an int or float of any length a number from `low` to `high`, both included? By default `high` is the
    largest that `kind` counts exactly, or holds. NaN, infinities and -0.0 are none.
    """
    high = (2**53 if kind is int else sys.float_info.max) if high is None else high
    return max(low, -sys.float_info.max) <= value <= high and (value != 0 or math.copysign(1, value) > 0)


def number(kind, low, high=None):
    """For argparse's `type`: an int or float for which is_number()."""
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
    Decorator for a script's main(): what a user can put right, a full disk, a file that cannot be had
    and memory that does not do included, becomes one line on stderr and exit code 2; Ctrl-C becomes
    one and 130. No print costs any work: what the terminal cannot show is shown as an escape, and when
    nobody reads on (`| head`) or the disk is full the work still goes to its end.
    """
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        had, code = (sys.stdout, sys.stderr), 2
        # one that somebody closed is None; the file in its place gets its number
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
    """A terminal, a pipe or a file that is printed to, and may go away: what is then said is lost."""

    def __init__(self, stream):
        self.stream, self.lost = stream, None  # lost: the error since which nothing is shown
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text=""):
        try:
            self.stream.write(text) if text else self.stream.flush()
        except OSError as e:
            self.lost = self.lost or e
            with contextlib.suppress(OSError, ValueError):  # a stream that is no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    flush = write


def in_words(e, otherwise):
    """An OSError in a line; otherwise: what it is about where it names no file."""
    return f"{e.filename or otherwise}: {e.strerror or first_line(e)}" + \
        ": make room, or choose another place" * (e.errno in (errno.ENOSPC, errno.EDQUOT))


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
