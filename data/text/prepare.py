"""
A text of your own (.txt, .xz, .gz, or folders of them) into train.bin, val.bin and meta.json,
streamed: memory stays the same however large the text, and all cores tokenize.

    python data/text/prepare.py --input FILE_OR_FOLDER [...] [--out=data/mine]
        [--tokenizer=bytes|gpt2|wordpiece] [--vocab=vocab.txt] [--bert]
        [--val FILE_OR_FOLDER ... | --val-fraction=0.01] [--doc-sep=blank-line|file]

A blank line ends a document, and so does the end of a file; the tokenizer's eot follows each.
With --bert (always with wordpiece) its sep follows each sentence. The rest is kept as it is.
"""
import codecs
import gzip
import io
import lzma
import os
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from data.bin_writer import (  # noqa: E402
    JOB_CHARS,
    BinWriter,
    complete,
    cut,
    describe,
    pick_split,
    run,
    script_parser,
    write_pieces,
)
from data.tokenizer import load  # noqa: E402
from run.errors import UserError  # noqa: E402

PACKED = {".xz": lzma.open, ".gz": gzip.open}
NOT_TEXT = (".zip", ".bz2", ".zst", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".parquet", ".pdf")


def find_files(paths, option):
    """The text files that `paths` name, folders searched through, sorted within each folder."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            here = [os.path.join(folder, n) for folder, _, names in os.walk(path) for n in names
                    if n.endswith((".txt", ".xz", ".gz")) and not n.endswith(NOT_TEXT)]
            if not here:
                raise UserError(f"{option} {path}: holds no .txt, .xz or .gz file: "
                                "name the files one by one")
            found += sorted(here)
        elif not os.path.exists(path):
            raise UserError(f"{option} {path}: no such file or folder: check the path")
        elif path.lower().endswith(NOT_TEXT):
            raise UserError(f"{option} {path}: is not plain text: unpack it to .txt first "
                            "(.txt.xz and .txt.gz are read as they are)")
        else:
            found.append(path)
    return list({os.path.realpath(path): path for path in found}.values())  # each one once


class Reader:
    """Reads files as text. `bad` counts the bytes that were not UTF-8; `bar` shows packed bytes."""

    def __init__(self, bar):
        self.bar, self.bad = bar, 0
        codecs.register_error("count", self._replace)

    def _replace(self, error):
        self.bad += error.end - error.start
        return "\ufffd", error.end

    def lines(self, path):
        """The file's lines with their newlines, overlong ones in parts of JOB_CHARS characters."""
        try:
            with open(path, "rb") as raw:
                unpack = PACKED.get(os.path.splitext(path)[1])
                text = io.TextIOWrapper(unpack(raw) if unpack else raw, "utf-8-sig",
                                        errors="count", newline="\n")
                where = raw.tell if raw.seekable() else lambda: 0  # a pipe cannot tell
                seen, shown = 0, 0
                while line := text.readline(JOB_CHARS):
                    yield line
                    seen += len(line)
                    if seen >= JOB_CHARS:
                        self.bar.update(where() - shown)
                        seen, shown = 0, where()
                self.bar.update(where() - shown)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
            reason = getattr(e, "strerror", None) or f"is damaged ({e})"
            raise UserError(f"{path}: {reason}: check it, or leave it out") from None


def split_documents(lines, blank_line):
    """
    Cut one file's lines into documents: yields (text, ends), `ends` telling that the document
    is over. Documents of white space only are left out, and so are blank lines before a document.
    No text is longer than four times JOB_CHARS.
    """
    parts, size, within = [], 0, False  # within: the last line is not yet over
    for line in lines:
        empty, whole = not line.strip(), not within and line.endswith("\n")
        within = not line.endswith("\n")
        if blank_line and empty and whole:
            if parts:
                yield "".join(parts), True
            parts, size = [], 0
            continue
        if empty and not parts:
            continue
        parts.append(line)
        size += len(line)
        if size >= JOB_CHARS:
            text = "".join(parts)
            n = cut(text)
            yield text[:n], False
            parts, size = [text[n:]], len(text) - n  # [""]: the document is still open
    if parts:
        yield "".join(parts), True


def pieces(reader, files, blank_line, split_of):
    """What write_pieces takes; split_of(number of the document) -> "train" or "val"."""
    number = 0
    for path in files:
        for text, ends in split_documents(reader.lines(path), blank_line):
            yield split_of(number), text, ends
            number += ends


def parse(argv):
    parser = script_parser(__doc__, HERE)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="text files, or folders of them")
    add("--tokenizer", default="bytes", help="bytes, gpt2 or wordpiece")
    add("--vocab", help="wordpiece's vocab.txt")
    add("--bert", action="store_true", help="mark the end of sentences, for BERT")
    add("--val", nargs="+", help="text files or folders for validation")
    add("--val-fraction", type=float, default=0.01, help="share of documents for validation")
    add("--seed", type=int, default=0, help="of the choice of those documents")
    add("--doc-sep", choices=("blank-line", "file"), default="blank-line",
        help="what ends a document")
    add("--workers", type=int, help="processes; the files do not depend on it (default: cores)")
    args = parser.parse_args(argv)
    if not args.val and not 0 < args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction} must lie between 0 and 1")
    if args.tokenizer == "char":
        parser.error("--tokenizer char is for data/shakespeare_char: use bytes")
    return args


def choose_files(args):
    """(training files, validation files): the latter empty without --val."""
    train, val = find_files(args.input, "--input"), find_files(args.val or [], "--val")
    held_out = {os.path.realpath(path) for path in val}
    train = [path for path in train if os.path.realpath(path) not in held_out]
    if not train:
        raise UserError("--val names all files of --input: leave some for training")
    if not val and args.doc_sep == "file":  # tell before reading gigabytes
        splits = {pick_split(i, args.val_fraction, args.seed) for i in range(len(train))}
        if len(splits) == 1:
            raise UserError(f"with --doc-sep=file and --val-fraction={args.val_fraction} all "
                            f"{len(train)} files fall into {splits.pop()}.bin: "
                            "give --val FILE or another --val-fraction")
    return train, val


def main(argv=None):
    from tqdm import tqdm
    args = parse(argv)
    train, val = choose_files(args)
    if not args.force and (old := complete(args.out)):
        raise UserError(f"--out {args.out} already holds a dataset ({old['source']}): choose "
                        "another folder, or --force to replace it")
    tok = load(args.tokenizer, args.vocab, args.bert)
    bert = args.bert or tok.name == "wordpiece"
    # bytes need no work: one process is faster than handing text around
    workers = args.workers or (1 if tok.name == "bytes" else os.cpu_count() or 1)
    source = " ".join(args.input) + (" with --val " + " ".join(args.val) if args.val else "")
    blank_line = args.doc_sep == "blank-line"
    total = sum(os.path.getsize(path) for path in train + val)
    with BinWriter(args.out, tok, source) as writer, \
            tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        reader = Reader(bar)
        if val:
            for split, files in (("train", train), ("val", val)):
                found = pieces(reader, files, blank_line, lambda number: split)
                write_pieces(writer, found, bert, workers)
        else:
            found = pieces(reader, train, blank_line,
                           lambda number: pick_split(number, args.val_fraction, args.seed))
            write_pieces(writer, found, bert, workers)
        if not any(writer.count.values()):
            raise UserError(f"--input {' '.join(args.input)}: holds no text")
    if reader.bad:
        print(f"{reader.bad} bytes were not UTF-8 and became U+FFFD: is the text in another "
              "encoding?", file=sys.stderr)
    print(describe(args.out, writer.meta))


if __name__ == "__main__":
    run(main)
