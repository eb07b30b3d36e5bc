"""
All tokenizers behind one small interface. Each can be rebuilt from a dataset's meta.json alone.

A tokenizer has
  name         "bytes", "char", "gpt2", "wordpiece", or "tokenizer.json" (any of Hugging Face's)
  vocab_size   number of ids, including BERT's special ids
  stream_size  all ids in a .bin file are below this (it decides the file's dtype)
  eot          id that ends a document; None if documents have no end (char)
  sep          id that ends a sentence in a .bin file; None if sentence ends are not marked
  special      {} or the ids of BERT's "cls", "sep", "mask", "pad"
  begin, end   ids put before and after a document, as in some tokenizer.json; else []
  encode(text) -> list of ids; encode_array(text) -> the same as a numpy array, faster
  decode(ids)  -> text; special ids become [CLS] etc., unknown ids U+FFFD
  meta()       everything needed to rebuild it, as JSON
"""
import difflib
import functools
import itertools
import json
import os

import numpy as np

from base.errors import UserError, library
from base.reading import read_json, read_text

NAMES = ("bytes", "char", "gpt2", "wordpiece")
JSON = "tokenizer.json"  # also the name of a tokenizer loaded from such a file
SPECIALS = ("cls", "sep", "mask", "pad")
UNKNOWN = "\ufffd"
WORDS = 1 << 18  # cached by WordPiece
GPT2_CHARS = 1 << 16  # encoded at a time
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_IDS = {0: "!", 256: "\u0120t", 262: "\u0120the", 50255: "\u0120gazed", 50256: "<|endoftext|>"}


def load(name, vocab=None, bert=False, eot=None, begin=(), end=()):
    """
    The tokenizer called `name`. vocab: char's characters in order of id; wordpiece's vocab.txt, as a path
    or a list of lines; or the text of a tokenizer.json. For the last, eot is the id that ends a document,
    and begin and end are the ids around one. bert: add BERT's special ids (wordpiece always has them).
    Raises UserError.
    """
    if name == JSON and bert:
        raise UserError("BERT cannot take a tokenizer.json: use bytes, gpt2, or wordpiece with the "
                        "vocab.txt beside it (--tokenizer=wordpiece --vocab=vocab.txt)")
    if name == JSON:
        return Json(vocab, eot, begin, end)
    if name == "bytes":
        return Bytes(bert)
    if name == "gpt2":
        return GPT2(bert)
    if name == "char":
        return Char(vocab)
    if name == "wordpiece":
        return WordPiece(vocab)
    near = difflib.get_close_matches(str(name), NAMES, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"tokenizer {name!r} is unknown: use one of {', '.join(NAMES)}, or the path of a "
                    f"tokenizer.json or of the folder that holds it{hint}")


def open_tokenizer(name, vocab=None, bert=False, eot=None):
    """
    load() by name, or by the path of a tokenizer.json or its folder. eot: the text of the token that ends
    a document; by default the eos_token in tokenizer_config.json beside it.
    """
    by_name = name in NAMES or not (os.path.exists(os.path.expanduser(name)) or name.endswith(".json"))
    if eot is not None and by_name:
        raise UserError(f"--eot={eot}: is for a tokenizer.json: {name} has its own")
    if by_name:
        return load(name, vocab, bert)
    spec = read_json_tokenizer(name, eot)
    tok = load(**spec, bert=bert)
    if tok.eot is None:
        raise UserError(f"--tokenizer={name}: no tokenizer_config.json beside it says which of its tokens "
                        f"ends a document: name it with --eot=TOKEN{tok.some_special()}")
    return tok


def read_json_tokenizer(path, eot=None):
    """
    meta() of a tokenizer.json or its folder. eot: see open_tokenizer(); the id is None if neither the
    argument nor the config names one. Raises UserError.
    """
    path = os.path.expanduser(path)
    path = os.path.join(path, JSON) if os.path.isdir(path) else path
    config = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    tok, said = Json(read_text(path), where=path), {}
    if eot is not None and tok.library.token_to_id(eot) is None:
        raise UserError(f"--eot={eot}: {path} has no such token: name another{tok.some_special()}")
    if os.path.exists(config):
        said = read_json(config)

    def id_of(token):
        token = token.get("content") if isinstance(token, dict) else token  # a dict in older files
        return tok.library.token_to_id(token) if isinstance(token, str) else None
    tok.eot = id_of(said.get("eos_token") if eot is None else eot)
    tok.begin, tok.end = put_around(tok.library)
    return tok.meta()


def put_around(library):
    """(ids before, ids after) that a tokenizer of the library adds around one text."""
    for text in ("a", *itertools.islice(library.get_vocab(), 100)):  # until one encodes to some id
        plain = library.encode(text, add_special_tokens=False).ids
        if plain:
            whole = library.encode(text).ids
            at = [i for i in range(len(whole)) if whole[i:i + len(plain)] == plain]
            return (whole[:at[0]], whole[at[0] + len(plain):]) if at else ([], [])
    return [], []


def first_id(meta):
    """The first id of every document, given a meta.json: begin's first, else eot of the one before."""
    return [*spec_of(meta).get("begin", []), meta.get("eot")][0]


def spec_of(meta):
    """A meta.json's tokenizer entry as a dict; "gpt2" is short for {"name": "gpt2"}."""
    spec = meta.get("tokenizer")
    return dict(name=spec) if isinstance(spec, str) else spec if isinstance(spec, dict) else {}


def tokenizer_of(meta):
    """(name, vocabulary) of a meta.json's tokenizer, to compare: equal tuples mean equal ids."""
    spec = spec_of(meta)
    name, vocab = spec.get("name"), spec.get("vocab")
    if name != JSON:
        return name, vocab
    try:  # compare meanings of ids: the file's layout depends on its writer
        said = json.loads(vocab)
        merges, vocab = said["model"].get("merges", []), said["model"]["vocab"]
        vocab = {token: i for i, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
        ids = {**vocab, **{t["content"]: t["id"] for t in said.get("added_tokens") or []}}
        merges = [m if isinstance(m, str) else " ".join(m) for m in merges]
    except (ValueError, TypeError, LookupError, AttributeError):
        return name, vocab
    return ("gpt2", None) if is_gpt2(sorted(ids, key=ids.get)) else (name, (ids, merges))


def is_gpt2(tokens):
    """Are these tokens, in order of id, GPT-2's?"""
    return len(tokens) == 50257 and all(tokens[i] == t for i, t in GPT2_IDS.items())


def cut(text):
    """
    Where to cut a document that is too long for one piece: before the white space that ends its last
    whole line, or else its last whole word. No tokenizer here merges text across that point, so the
    tokens are those of the uncut text. Exception: a tokenizer.json may merge a full stop with the
    newline after it.
    """
    head = text[:text.rfind("\n") + 1].rstrip()
    if not head:
        words = text.rsplit(None, 1)
        head = words[0] if len(words) == 2 else text
    return len(head)


def get_tokenizer(meta, bert=None):
    """
    The tokenizer of a dataset, given its meta.json as a dict. bert=True adds BERT's special ids to a
    dataset prepared without them; `sep` still describes the dataset's files. Raises UserError.
    """
    spec = spec_of(meta)
    if "name" not in spec:
        raise UserError("meta.json names no tokenizer: prepare the dataset again")
    prepared = bool(spec.get("bert"))
    tok = load(spec["name"], spec.get("vocab"), prepared if bert is None else bert, spec.get("eot"),
               spec.get("begin", ()), spec.get("end", ()))
    if tok.name == "gpt2" and not prepared:
        tok.sep = None
    return tok


class Tokenizer:
    """What all tokenizers share."""
    special = {}
    sep = None
    begin, end = [], []

    @property
    def ending(self):
        """The ids after a document's last token: end, then eot unless end has it already."""
        return self.end if self.end[-1:] == [self.eot] else [*self.end, self.eot]

    def encode(self, text):
        return self.encode_array(text).tolist()

    def encode_array(self, text):
        return np.array(self.encode(text), dtype=self.dtype)

    def decode(self, ids):
        return b"".join(self._bytes(int(i)) for i in ids).decode("utf-8", errors="replace")

    @property
    def dtype(self):
        """The dtype of a .bin file: the smallest of "uint8", "uint16", "uint32" that holds its ids."""
        return np.min_scalar_type(self.stream_size - 1).name

    def meta(self):
        return dict(name=self.name, bert=bool(self.special))

    def _append_special(self, bert):
        self.special = {s: self.vocab_size + i for i, s in enumerate(SPECIALS)} if bert else {}
        self.vocab_size += len(self.special)

    def _marker(self, i):
        names = {v: f"[{k.upper()}]" for k, v in self.special.items()}
        return names.get(i, UNKNOWN).encode()


class Bytes(Tokenizer):
    """
    The text's UTF-8 bytes. NUL ends a document and a newline ends a sentence, so one .bin file serves
    GPT and BERT. BERT's special ids are above 255 and never occur in the file.
    """
    name = "bytes"
    eot, sep = 0, ord("\n")

    def __init__(self, bert=False):
        self.vocab_size = self.stream_size = 256
        self._append_special(bert)

    def encode_array(self, text):
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8)

    def _bytes(self, i):
        return bytes([i]) if 0 <= i < 256 else self._marker(i)


class Char(Tokenizer):
    """One id per character of the dataset, as nanoGPT's shakespeare_char. No end of document."""
    name = "char"
    eot = None

    def __init__(self, itos):
        if not itos or not all(isinstance(c, str) and len(c) == 1 for c in itos):
            raise UserError("tokenizer char needs its characters, in the order of their ids: "
                                 "prepare the dataset again")
        self.itos = list(itos)
        self.stoi = {c: i for i, c in enumerate(self.itos)}
        self.vocab_size = self.stream_size = len(self.itos)

    def encode(self, text):
        try:
            return [self.stoi[c] for c in text]
        except KeyError as e:
            raise UserError(f"character {e.args[0]!r} is not among the {self.vocab_size} of "
                                 "this dataset: leave it out") from None

    def decode(self, ids):
        return "".join(self.itos[i] if 0 <= i < self.vocab_size else UNKNOWN for i in map(int, ids))

    def meta(self):
        return dict(name=self.name, vocab=self.itos)


class GPT2(Tokenizer):
    """GPT-2's byte-pair encoding, from tiktoken. BERT's special ids follow <|endoftext|>."""
    name = "gpt2"
    eot = 50256

    def __init__(self, bert=False):
        self.bpe = _gpt2_encoding()
        self.vocab_size = 50257
        self._append_special(bert)
        self.sep = self.special.get("sep")
        self.stream_size = self.vocab_size

    def encode(self, text):
        # "<|endoftext|>" in a text is plain text here. Long texts are encoded in parts: a million
        # spaces make tiktoken panic, and a million letters may take it for ever
        ids, start = [], 0
        while start < len(text):
            part = text[start:start + GPT2_CHARS]
            if start + GPT2_CHARS < len(text):
                part = part[:cut(part)]
            ids += self.bpe.encode_ordinary(part)
            start += len(part)
        return ids

    def _bytes(self, i):
        return self.bpe.decode_single_token_bytes(i) if 0 <= i <= self.eot else self._marker(i)


def _gpt2_encoding():
    tiktoken = library("tiktoken", "tiktoken")
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:  # from requests, a proxy, a bad hash: no file in any case
        cache = os.environ.get("TIKTOKEN_CACHE_DIR", "(not set)")
        raise UserError(
            f"tokenizer gpt2 needs vocab.bpe and encoder.json from {GPT2_URL}: not in "
            f"TIKTOKEN_CACHE_DIR={cache}, and the download failed ({type(e).__name__}): set it to "
            "a folder, run once with a network and take the folder along, or use "
            "--tokenizer=bytes") from None


class WordPiece(Tokenizer):
    """
    BERT's uncased WordPiece from its vocab.txt. [PAD] ends a document and [SEP] a sentence. encode()
    never returns either: "[SEP]" in a text is three words.
    """
    name = "wordpiece"

    def __init__(self, vocab):
        tokenizers = library("tokenizers", "tokenizers")
        self.vocab = read_vocab(vocab) if isinstance(vocab, (str, os.PathLike)) else vocab
        if not self.vocab:
            raise UserError("tokenizer wordpiece needs a vocabulary: give --vocab=vocab.txt, "
                                 "BERT's list of one token a line")
        ids = {token: i for i, token in enumerate(self.vocab)}
        missing = [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t not in ids]
        if missing or len(ids) < len(self.vocab):
            wrong = f"has no {', '.join(missing)}" if missing else "lists a token twice"
            where = f" {vocab}" if isinstance(vocab, (str, os.PathLike)) else ""
            raise UserError(f"the WordPiece vocabulary{where} {wrong}: "
                                 "use a BERT vocab.txt, one token a line")
        self.special = {s: ids[f"[{s.upper()}]"] for s in SPECIALS}
        self.eot, self.sep = ids["[PAD]"], ids["[SEP]"]
        self.vocab_size = self.stream_size = len(self.vocab)
        # BERT's own steps, except that no token is declared special: text must not forge one
        self.library = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
        self.library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        self.library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self.known_word = functools.lru_cache(WORDS)(self._encode_word)
        self.join = tokenizers.decoders.WordPiece().decode

    def encode(self, text):
        # the library encodes word by word anyway; caching words is 2 to 4 times as fast
        ids = []
        for word in text.replace("\n", " ").split(" "):
            ids += self.known_word(word) if len(word) < 64 else self._encode_word(word)
        return ids

    def _encode_word(self, word):
        return self.library.encode(word.encode("utf-8", errors="replace").decode()).ids

    def decode(self, ids):
        ids = [int(i) for i in ids]
        return self.join([self.vocab[i] if 0 <= i < self.vocab_size else UNKNOWN for i in ids])

    def meta(self):
        return dict(name=self.name, vocab=self.vocab)


class Json(Tokenizer):
    """
    Any tokenizer of Hugging Face's tokenizers library, from the text of its tokenizer.json. The name of
    a special token in a text is plain text. encode() does not add begin and end, which go around whole
    documents. Datasets made before these existed have none.
    """
    name = JSON

    def __init__(self, vocab, eot=None, begin=(), end=(), where=JSON):
        self.vocab, self.eot, self.begin, self.end = vocab, eot, [*begin], [*end]
        try:
            self.library = library("tokenizers", "tokenizers").Tokenizer.from_str(vocab)
        except UserError:
            raise
        except Exception as e:  # the library has no exception type of its own
            raise UserError(f"{where}: is none that the tokenizers library reads ({e}): fetch it again, "
                            "or pip install -U tokenizers") from None
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = True
        self.known = frozenset(self.library.get_vocab(with_added_tokens=True).values())
        self.vocab_size = self.stream_size = 1 + max(self.known, default=0)

    def encode(self, text):
        text = text.encode("utf-8", errors="replace").decode()  # replaces lone surrogates
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        groups = itertools.groupby(map(int, ids), self.known.__contains__)
        return "".join(self.library.decode(list(some), skip_special_tokens=False) if known else
                       UNKNOWN * len(list(some)) for known, some in groups)

    def some_special(self):
        """The first few special tokens, for an error message."""
        special = [t.content for _, t in sorted(self.library.get_added_tokens_decoder().items())]
        return f" (it has {', '.join(special[:5])}{', ...' * (len(special) > 5)})" if special else ""

    def meta(self):
        around = dict(begin=self.begin, end=self.end)
        return dict(name=self.name, vocab=self.vocab, eot=self.eot, **{k: v for k, v in around.items() if v})


def read_vocab(path):
    try:
        lines = read_text(path).rstrip("\r\n").split("\n")
    except UserError as e:
        raise UserError(f"vocabulary {e}: give --vocab=vocab.txt, BERT's list of one token a "
                        "line") from None
    return [line.rstrip("\r") for line in lines] if lines != [""] else []
