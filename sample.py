"""
Write text with a trained GPT or Llama, from a run's folder, a checkpoint or a Hugging Face folder.

    python sample.py out/pystdlib_msg --prompt="def " --max_new_tokens=400
    head -c 300 grow.py | python sample.py out/pystdlib_msg --prompt=- --num_samples=4

A sample stops at the tokenizer's end of text. Control characters other than newline and tab are printed
as escapes (\\x1b), because a terminal would obey them.
"""
import re
import sys
import time

import torch

from base.errors import UserError, exits_cleanly, first_line, number
from base.reading import read_text
from data.tokenizer import get_tokenizer
from model import GPT
from run.evaluation import newline
from run.trained import model_parser, open_model

CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")  # C0 without newline and tab, DEL, C1


def parse(argv):
    drawn = "--temperature above 0", lambda a: a.temperature
    p = model_parser(__doc__, means=dict(top_k=drawn, seed=drawn, num_samples=drawn))
    p.add_argument("--prompt", help="what the text starts with; @FILE reads a file, - standard input; a newline if left out")
    p.add_argument("--num_samples", type=number(int, 1), default=1, help="written side by side")
    p.add_argument("--max_new_tokens", type=number(int, 0), default=500)
    p.add_argument("--temperature", type=number(float, 0), default=0.8,
                   help="0 = always the likeliest token")
    p.add_argument("--top_k", type=number(int, 0), default=50,
                   help="choose among so many tokens, 0 = all")
    p.add_argument("--seed", type=int, default=1337)
    return p.parse_args(argv)


def read_prompt(given):
    """The text of --prompt. Raises UserError."""
    text = read_text("-") if given == "-" else read_text(given[1:]) if given[:1] == "@" else given
    if not text:
        raise UserError("--prompt is empty: give the text something to start with")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("--prompt: not UTF-8 text: give --prompt=@FILE, of UTF-8") from None
    return text


def visible(text):
    """The text with control characters, except newline and tab, as escapes."""
    return CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def write(model, ids, args, eot):
    """One list of ids per sample: the prompt and its continuation, without the end of text."""
    idx = torch.tensor([ids], device=args.device).expand(args.num_samples, -1)
    rows = model.generate(idx, args.max_new_tokens, args.temperature, args.top_k or None, eot).tolist()
    return [row[:row.index(eot, len(ids))] if eot in row[len(ids):] else row for row in rows]


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    prompt = None if args.prompt is None else read_prompt(args.prompt)
    model, info = open_model(args.checkpoint, args.device)
    if not isinstance(model, GPT):
        raise UserError(f"{args.checkpoint}: is a bert model, which fills gaps rather than writes "
                        "on: sample from a GPT")
    tok = get_tokenizer(info["meta"])
    ids = tok.begin + (newline(tok) if prompt is None else tok.encode(prompt))
    if ids == tok.begin:
        raise UserError("--prompt holds no token of this model's: give it another text")
    torch.manual_seed(args.seed % 2**64)
    started = time.perf_counter()
    try:
        rows = write(model, ids, args, tok.eot)
    except (RuntimeError, IndexError) as e:  # NaN weights, out of memory, ids of another model
        raise UserError(f"{args.checkpoint}: cannot be sampled ({first_line(e)})") from None
    seconds = time.perf_counter() - started
    for row in rows:
        print(visible(tok.decode(row[len(tok.begin):])))
        print("-" * 80)
    sys.stdout.flush()
    n = sum(len(row) - len(ids) for row in rows)
    print(f"{n} tokens in {seconds:.1f} s, {n / max(seconds, 1e-9):,.0f} a second", file=sys.stderr)


if __name__ == "__main__":
    main()
