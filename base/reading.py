"""
How all text and JSON files are read, for training and evaluation alike.

Text is UTF-8 and kept exactly, line ends included (CRLF stays CRLF). Only a byte order mark at the
start is dropped. .gz, .xz and .zst are unpacked. UTF-16 and binary files are refused, and the error
says how to convert them. JSON is checked for the keys it must have.
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

LOOK = 1 << 16  # bytes inspected to tell text from binary data


class _Zst(io.RawIOBase):
    """Unpacks .zst. zstandard's own reader does not notice a truncated file."""

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
    The files in a folder and its subfolders, following links. Each real folder is visited once, so link
    loops end. Folders named in `without` are skipped. Raises UserError for an unreadable folder.
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
    with open_text(path) as f: open a text file; the path "-" is standard input. Lines end with "\\n";
    a "\\r" before it is kept. errors: as in open(), for bytes that are not UTF-8; "strict" raises
    UserError. f.raw_file is the underlying file; its tell() shows progress. Any fault of the file
    raises UserError, also while the block runs.
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
        if type(e).__name__ != "ZstdError":  # by name: zstandard is optional
            raise
        raise UserError(f"{path}: is damaged ({e}): check it, or leave it out") from None


def read_text(path):
    """The whole text of a file as a str; see open_text."""
    with open_text(path) as f:
        return f.read()


def _converting(path, code):
    """The shell command that converts a text file, packed or not, to UTF-8."""
    name, packer = shlex.quote(path), PACKERS.get(os.path.splitext(path)[1].lower())
    return f"{packer} -dc {name} | iconv -f {code} -t UTF-8 > new.txt" if packer else \
        f"iconv -f {code} -t UTF-8 {name} > new.txt"


def _refuse_what_is_no_text(path, start):
    """UserError if a file that starts with these bytes is UTF-16, UTF-32 or binary."""
    code = None
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        code = "UTF-32"
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        code = "UTF-16"
    elif start.count(0) * 4 > len(start):  # no byte order mark: try each encoding
        code = next((c for c in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE") if all(
            v.isprintable() or v.isspace() for v in start[:1000].decode(c, "ignore"))), None)
    if code:
        raise UserError(f"{path}: is {code} text: convert it first: {_converting(path, code)}")
    if start.count(0) * 1000 > len(start):  # large texts may contain a stray NUL
        raise UserError(f"{path}: is not text, but binary data: give a UTF-8 text file")


def read_json(path, **kinds):
    """The JSON object in a file. It must have these keys; see need()."""
    found = parse_json(path, read_text(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no JSON object")
    need(path, found, **kinds)
    return found


def read_jsonl(path, limit=0):
    """The objects of a .jsonl file: [("FILE:LINE", object), ...]"""
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
    """
    The values of these keys of `found`. kinds: {key: type or tuple of types}. UserError if a key is
    missing, has another type or is not a finite number.
    """
    for key, kind in kinds.items():
        value = found.get(key) if isinstance(found, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or (
                isinstance(value, (int, float)) and not is_number(value, kind=kind)):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else [kind]))
            raise UserError(f"{where}: lacks {key}, or it is no {names}: {', '.join(kinds)} are "
                            "expected")
    return [found[key] for key in kinds]
