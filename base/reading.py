"""
The one way texts are read, for training and evaluation alike.

A text is UTF-8. What a file holds is kept to the letter, line ends included (CRLF stays CRLF), but
for a byte order mark at its start, which is no text. .gz, .xz and .zst are unpacked. UTF-16 and
what is no text are refused, in one line with the remedy. JSON is read, and what it must hold checked.
"""
import contextlib
import gzip
import io
import json
import lzma
import os
import shlex
import zlib

from base.errors import UserError, is_number, library

LOOK = 1 << 16  # bytes looked at to tell a text from something else


class _Zst(io.RawIOBase):
    """A .zst unpacked. zstandard's own reader takes a file that was cut short for a whole one."""

    def __init__(self, raw):
        self.raw, self.new = raw, library("zstandard", "zstandard").ZstdDecompressor().decompressobj
        self.frame, self.within, self.ready = self.new(), False, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.ready and (packed := self.raw.read(1 << 13)):
            while packed:
                self.ready += self.frame.decompress(packed)
                self.within, packed = not self.frame.eof, self.frame.unused_data
                self.frame = self.frame if self.within else self.new()
        if not self.ready and self.within:
            raise EOFError("it ends too early")
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n


PACKED = {".gz": gzip.open, ".xz": lzma.open, ".zst": _Zst}
PACKERS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}


def files_below(folder, without=()):
    """
    The files in a folder and in those below it, links to folders followed; each real folder once, so
    that loops end, and none with a name in `without`. Raises UserError for one that cannot be read.
    """
    def stop(e):
        if not isinstance(e, FileNotFoundError):
            raise UserError(f"{e.filename}: {e.strerror}: make it readable, or leave it out") from None
    entered = set()
    for here, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = sorted(set(folders).difference(without)) if real not in entered else []
        if real not in entered:
            yield from (os.path.join(here, name) for name in names)
        entered.add(real)


@contextlib.contextmanager
def open_text(path, errors="strict"):
    """
    with open_text(path) as f: a text file to read, iterate or f.readline(limit); lines end with
    "\\n", a "\\r" before it is theirs. errors: as open()'s, for bytes that are not UTF-8; "strict"
    is a UserError. f.raw_file is the file itself, whose tell() shows how far it has been read. The
    path "-" is standard input. Raises UserError for whatever is wrong with the file, while the
    block runs too.
    """
    path = os.path.expanduser(path)
    try:
        with open(0 if path == "-" else path, "rb", buffering=LOOK, closefd=path != "-") as raw:
            unpack = PACKED.get(os.path.splitext(path)[1].lower())
            unpacked = io.BufferedReader(unpack(raw), LOOK) if unpack else raw
            _refuse_what_is_no_text(path, unpacked.peek(LOOK)[:LOOK])
            with io.TextIOWrapper(unpacked, "utf-8-sig", errors=errors, newline="\n") as text:
                text.raw_file = raw
                yield text
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text ({e.reason}): convert it first, perhaps with "
                        f"{_converting(path, 'LATIN1')}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or f'is damaged ({e})'}: "
                        "check it, or leave it out") from None
    except Exception as e:
        if type(e).__name__ != "ZstdError":  # of a library that need not be there
            raise
        raise UserError(f"{path}: is damaged ({e}): check it, or leave it out") from None


def read_text(path):
    """The whole text of a file as a str; see open_text."""
    with open_text(path) as f:
        return f.read()


def _converting(path, code):
    """The command that makes UTF-8 of a text file, packed or not."""
    name, packer = shlex.quote(path), PACKERS.get(os.path.splitext(path)[1].lower())
    return f"{packer} -dc {name} | iconv -f {code} -t UTF-8 > new.txt" if packer else \
        f"iconv -f {code} -t UTF-8 {name} > new.txt"


def _refuse_what_is_no_text(path, start):
    """UserError if a file that starts with these bytes is UTF-16, UTF-32 or no text at all."""
    code = None
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        code = "UTF-32"
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        code = "UTF-16"
    elif start.count(0) * 4 > len(start):  # without a mark: of which kind does it make sense?
        code = next((c for c in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE") if all(
            v.isprintable() or v.isspace() for v in start[:1000].decode(c, "ignore"))), None)
    if code:
        raise UserError(f"{path}: is {code} text: convert it first: {_converting(path, code)}")
    if start.count(0) * 1000 > len(start):  # a stray NUL happens in large texts
        raise UserError(f"{path}: is not text, but binary data: give a UTF-8 text file")


def read_json(path, **kinds):
    """The JSON object in a file, which must have these keys; see need()."""
    found = parse_json(path, read_text(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no JSON object")
    need(path, found, **kinds)
    return found


def read_jsonl(path, limit=0):
    """[("FILE:LINE", object), ...]"""
    lines = [(f"{path}:{i}", line) for i, line in enumerate(read_text(path).split("\n"), 1)
             if line.strip()][:limit or None]
    if not lines:
        raise UserError(f"{path}: is empty: one JSON object a line is expected")
    return [(where, parse_json(where, line)) for where, line in lines]


def parse_json(where, text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e})") from None


def need(where, found, **kinds):
    """The values of an object's keys, each of its kind, or of one of several, numbers finite. UserError else."""
    for key, kind in kinds.items():
        value = found.get(key) if isinstance(found, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or (
                isinstance(value, (int, float)) and not is_number(value, kind=kind)):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else [kind]))
            raise UserError(f"{where}: lacks {key}, or it is no {names}: {', '.join(kinds)} are "
                            "expected")
    return [found[key] for key in kinds]
