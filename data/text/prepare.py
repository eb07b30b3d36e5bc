"""
Turn your own text into train.bin, val.bin and meta.json. Input is .txt, .jsonl (one document a line) or
.parquet (one document a row), folders of these, or a dataset on the Hugging Face hub. .txt and .jsonl
may be packed as .gz, .xz or .zst. The text is streamed, so memory does not grow with its size, and all
cores tokenize.

    python data/text/prepare.py --input FILE_OR_FOLDER [...] [--out=data/mine] [--field=text]
        [--tokenizer=bytes|gpt2|wordpiece|FOLDER_OR_TOKENIZER.JSON] [--eot=TOKEN]
        [--vocab=vocab.txt] [--bert]
        [--val FILE_OR_FOLDER ... | --val-fraction=0.01 [--val-within]] [--doc-sep=blank-line|file]
    python data/text/prepare.py --dataset=OWNER/NAME[:CONFIG] [--split=train] [--column=text]
        [--limit=DOCUMENTS] [...]

In a .txt file a blank line or the end of the file ends a document. The tokenizer's eot is added after
each document. With --bert (always with wordpiece) its sep is added after each sentence. Everything else
is kept as it is.
"""
import codecs
import itertools
import json
import os
import re
import sys
from collections import Counter

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from base.errors import UserError, library, number  # noqa: E402
from base.reading import PACKED, files_below, open_text  # noqa: E402
from base.words import count  # noqa: E402
from data.bin_writer import (  # noqa: E402
    JOB_CHARS,
    BinWriter,
    complete,
    describe,
    in_pieces,
    n_workers,
    pick_split,
    refuse_others,
    run,
    script_parser,
    write_pieces,
)
from data.hub import open_dataset  # noqa: E402
from data.tokenizer import cut, open_tokenizer  # noqa: E402

READ = (".txt", ".jsonl", ".parquet")
NOT_TEXT = (".zip", ".bz2", ".tar", ".tgz", ".pdf", ".docx", ".epub", ".7z", ".arrow")


def extensions(path):
    """(kind, packing) of a file, from its name: "B.TXT.gz" -> (".txt", ".gz")."""
    stem, last = os.path.splitext(os.path.basename(path).lower())
    return (os.path.splitext(stem)[1], last) if last in PACKED else (last, "")


def is_read(path):
    kind, packed = extensions(path)
    return kind in READ and not (kind == ".parquet" and packed) or bool(packed and not kind)


def find_files(paths, option, left_out):
    """
    The files in `paths`. Folders are searched recursively and their files sorted. Files left out are
    counted by extension in the Counter left_out.
    """
    found = []
    for path in map(os.path.expanduser, paths):
        if os.path.isdir(path):
            here = list(files_below(path))
            others = Counter("".join(extensions(p)) or "without extension"
                             for p in here if not is_read(p))
            left_out.update(others)
            if others.total() == len(here):
                raise UserError(f"{option} {path}: holds no {', '.join(READ)} file, packed or not"
                                + f" ({counted(others)})" * bool(others)
                                + ": name files one by one to read them as text")
            found += sorted(filter(is_read, here))
        elif not os.path.exists(path):
            raise UserError(f"{option} {path}: no such file or folder: check the path")
        elif extensions(path)[0] in NOT_TEXT or extensions(path)[0] == ".parquet" and not is_read(path):
            raise UserError(f"{option} {path}: is not plain text: unpack it to .txt first "
                            f"(.txt{', .txt'.join(PACKED)} are read as they are)")
        else:
            found.append(path)
    return list({os.path.realpath(path): path for path in found}.values())  # without duplicates


def counted(counter):
    return ", ".join(f"{n} {what}" for what, n in counter.most_common())


class Reader:
    """
    Reads documents from files. `bad` counts bytes that were not UTF-8. `bar`, a progress bar or None,
    is advanced by the bytes read (packed bytes if the file is packed).
    """

    def __init__(self, field, blank_line, bar=None):
        self.field, self.blank_line, self.bar, self.bad = field, blank_line, bar, 0
        codecs.register_error("count", self._replace)

    def _replace(self, error):
        self.bad += error.end - error.start
        return "\ufffd", error.end

    def documents(self, files):
        """Yield (text, ends) for all files; `ends` is true for a document's last piece."""
        for path in files:
            kind = extensions(path)[0]
            if kind in (".jsonl", ".parquet"):
                texts = self.jsonl(path) if kind == ".jsonl" else self.parquet(path)
                for text in texts:
                    if text.strip():
                        yield from in_pieces(text)
            else:
                yield from split_documents(self.lines(path, JOB_CHARS), self.blank_line)

    def dataset(self, name, split, limit):
        """The same for a split of a dataset on the Hugging Face hub, or its first `limit` documents."""
        for record in itertools.islice(open_dataset(name, split), limit):
            text = self.text_of(record, f"--dataset={name}")
            self.show(len(text))
            if text.strip():
                yield from in_pieces(text)

    def lines(self, path, limit):
        """The file's lines with their newlines; long ones are split into `limit` characters."""
        with open_text(path, errors="count") as text:
            where = text.raw_file.tell if text.raw_file.seekable() else lambda: 0  # a pipe has no position
            seen, shown = 0, 0
            while line := text.readline(limit):
                yield line
                seen += len(line)
                if seen >= JOB_CHARS:
                    self.show(where() - shown)
                    seen, shown = 0, where()
            self.show(where() - shown)

    def show(self, n):
        if self.bar is not None:
            self.bar.update(n)

    def jsonl(self, path):
        for n, line in enumerate(self.lines(path, -1), 1):
            try:
                record = json.loads(line) if line.strip() else {self.field: ""}
            except (ValueError, RecursionError):
                raise UserError(f"{path}:{n}: is not JSON: one object a line is expected"
                                ) from None
            yield self.text_of(record, f"{path}:{n}")

    def parquet(self, path):
        reading = library("pyarrow.parquet", "pyarrow")
        try:
            file = reading.ParquetFile(path)
            if self.field not in file.schema_arrow.names:
                self.text_of(dict.fromkeys(file.schema_arrow.names), path)
            for batch in file.iter_batches(batch_size=256, columns=[self.field]):
                for text in batch.column(0).to_pylist():
                    yield self.text_of({self.field: text}, path)
        except (OSError, ValueError) as e:  # pyarrow's errors are subclasses
            raise UserError(f"{path}: is damaged ({e}): check it, or leave it out") from None
        self.show(os.path.getsize(path))

    def text_of(self, record, where):
        if not isinstance(record, dict) or self.field not in record:
            has = f"its fields are {', '.join(record)}" if isinstance(record, dict) else \
                "it is no object"
            raise UserError(f"{where}: has no field {self.field!r}, {has}: name one with --field")
        text = record[self.field]
        if not isinstance(text, str | None):
            raise UserError(f"{where}: field {self.field!r} holds no text, but {str(text)[:40]!r}: "
                            "name another with --field")
        return text or ""


def split_documents(lines, blank_line):
    """
    Cut one file's lines into documents. Yields (text, ends); `ends` is true for a document's last piece.
    Leaves out documents of white space only, and blank lines before a document. No piece is longer than
    four times JOB_CHARS.
    """
    parts, size, within = [], 0, False  # within: the last line has not ended yet
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


def by_document(found, split_of):
    """Pieces for write_pieces(); split_of(document number) -> "train" or "val"."""
    number = 0
    for text, ends in found:
        yield split_of(number), text, ends
        number += ends


def by_length(found, n_train):
    """The same, with about the first n_train characters for train, cut at white space."""
    seen = 0
    for text, ends in found:
        at = n_train - seen
        seen += len(text)
        if not 0 < at <= len(text):
            yield "train" if at > 0 else "val", text, ends
            continue
        before = re.match(r".*\S(?=\s)", text[:at], re.DOTALL)
        after = re.compile(r"\s+\S").search(text, at)  # not the newline at the very end
        n = before.end() if before else after.start() if after else at
        yield "train", text[:n], True
        if text[n:].strip():
            yield "val", text[n:], ends


def length_to_split(reader, files, within):
    """Characters in all documents, or None if there are several and `within` is false."""
    if not all(map(os.path.isfile, files)):  # a pipe can be read only once
        if within:
            raise UserError("--val-within reads its files twice, which a pipe does not allow")
        return None
    length, over = 0, False
    for text, ends in reader.documents(files):
        if over and not within:
            return None
        length, over = length + len(text), over or ends
    return length


MEANS = dict(  # options that have no effect beside some others, see Parser
    **dict.fromkeys(("split", "limit"), ("--dataset", lambda a: a.dataset)),
    vocab=("--tokenizer wordpiece", lambda a: a.tokenizer == "wordpiece"),
    eot=("a tokenizer.json", lambda a: a.tokenizer not in ("bytes", "gpt2", "wordpiece")),
    **dict.fromkeys(("val_fraction", "val_within"), ("documents of --input or --dataset, so without --val",
                                                     lambda a: not a.val)),
    seed=("documents drawn for validation, so without --val and --val-within", lambda a: not (a.val or a.val_within)),
    doc_sep=("--input or --val", lambda a: a.input or a.val))


def parse(argv, **usual):
    parser = script_parser(__doc__, HERE, means=MEANS)
    add = parser.add_argument
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--input", nargs="+", default=[], help="text files, or folders of them")
    group.add_argument("--dataset", help="of the Hugging Face hub: OWNER/NAME or OWNER/NAME:CONFIG")
    add("--split", default="train", help="of --dataset")
    add("--limit", type=number(int, 1), help="only the first so many documents of --dataset")
    add("--tokenizer", default="bytes",
        help="bytes, gpt2, wordpiece, or a Hugging Face tokenizer.json or its folder")
    add("--eot", help="the token of a tokenizer.json that ends a document (default: its eos_token)")
    add("--vocab", help="wordpiece's vocab.txt")
    add("--bert", action="store_true", help="mark the end of sentences, for BERT")
    add("--field", "--column", default="text", help="of .jsonl, .parquet, --dataset that holds the text")
    add("--val", nargs="+", help="text files or folders for validation")
    add("--val-fraction", type=number(float, 0), default=0.01, help="share of documents for validation")
    add("--val-within", action="store_true",
        help="the end of the text for validation, not documents (so it is if there is but one)")
    add("--seed", type=number(int, 0), default=0, help="of the choice of those documents")
    add("--doc-sep", choices=("blank-line", "file"), default="blank-line",
        help="what ends a document")
    add("--workers", type=n_workers, help="processes; the files do not depend on it (default: cores)")
    parser.set_defaults(**usual)
    args = parser.parse_args(argv)
    if not args.val and not 0 < args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction} must lie between 0 and 1")
    if args.dataset and args.val_within:
        parser.error("--val-within reads its texts twice: with --dataset leave it out")
    if args.tokenizer == "char":
        parser.error("--tokenizer char is for data/shakespeare_char: use bytes")
    return args


def choose_files(args):
    """(training files, validation files); the latter is empty without --val."""
    left_out = Counter()
    train, val = find_files(args.input, "--input", left_out), \
        find_files(args.val or [], "--val", left_out)
    held_out = {os.path.realpath(path) for path in val}
    train = [path for path in train if os.path.realpath(path) not in held_out]
    if not train and not args.dataset:
        raise UserError("--val names all files of --input: leave some for training")
    if not val and args.doc_sep == "file" and len(train) > 1 and not args.val_within \
            and all(extensions(path)[0] not in READ[1:] for path in train):
        splits = {pick_split(i, args.val_fraction, args.seed) for i in range(len(train))}
        if len(splits) == 1:  # fail before reading gigabytes
            raise UserError(f"with --doc-sep=file and --val-fraction={args.val_fraction} all "
                            f"{len(train)} files fall into {splits.pop()}.bin: give --val FILE, "
                            "another --val-fraction or --val-within")
    n = len(train) + len(val)
    what = [args.dataset] * bool(args.dataset) + [count(n, "file")] * bool(n)
    print(f"reading {' and '.join(what)}" + (
        f", leaving out {left_out.total()} that are not {', '.join(READ)}: {counted(left_out)}"
        if left_out else ""))
    return train, val


def main(argv=None, **usual):
    from tqdm import tqdm
    args = parse(argv, **usual)
    train, val = choose_files(args)
    if not args.force:
        if old := complete(args.out):
            raise UserError(f"--out {args.out} already holds a dataset ({old['source']}): choose "
                            "another folder, or --force to replace it")
        refuse_others(args.out)
    tok = open_tokenizer(args.tokenizer, args.vocab, args.bert, args.eot)
    bert = args.bert or tok.name == "wordpiece"
    # bytes need no tokenizing: one process is faster than passing text around
    workers = args.workers or (1 if tok.name == "bytes" else os.cpu_count() or 1)
    source = (args.dataset or " ".join(args.input)) + (" with --val " + " ".join(args.val) if args.val else "")
    how = args.field, args.doc_sep == "blank-line"
    length = None if val or args.dataset else length_to_split(Reader(*how), train, args.val_within)
    if length and not args.val_within:
        print(f"there is but one document: its last {args.val_fraction:.2%} are for validation")
    total = sum(os.path.getsize(path) for path in train + val)
    with BinWriter(args.out, tok, source) as writer, \
            tqdm(total=None if args.dataset else total, unit="B", unit_scale=True, disable=None) as bar:
        reader = Reader(*how, bar)
        found = reader.dataset(args.dataset, args.split, args.limit) if args.dataset else \
            reader.documents(train)
        if val:
            write_pieces(writer, by_document(found, lambda number: "train"), bert, workers)
            found = reader.documents(val)

        def split_of(number):
            return "val" if val else pick_split(number, args.val_fraction, args.seed)
        write_pieces(writer, by_document(found, split_of) if length is None else
                     by_length(found, max(1, int(length * (1 - args.val_fraction)))), bert, workers)
        if not any(writer.count.values()):
            raise UserError(f"{source}: holds no text")
    if reader.bad:
        print(f"{reader.bad} bytes were not UTF-8 and became U+FFFD: is the text in another "
              "encoding?", file=sys.stderr)
    print(describe(args.out, writer.meta))


if __name__ == "__main__":
    run(main)
