"""
Text from a trained GPT.

    python sample.py out/pystdlib_msg --prompt="def " --max_new_tokens=400
"""
import sys

import torch

from data.reading import read_text
from data.tokenizer import get_tokenizer
from model import GPT
from run.errors import UserError, exits_cleanly, first_line
from run.given import model_parser, number
from run.hf import open_model


def parse(argv):
    p = model_parser(__doc__)
    p.add_argument("--prompt", default="\n", help="what the text starts with; @FILE reads a file")
    p.add_argument("--num_samples", type=number(int, 1), default=1)
    p.add_argument("--max_new_tokens", type=number(int, 0), default=500)
    p.add_argument("--temperature", type=number(float, 0), default=0.8,
                   help="0 = always the likeliest token")
    p.add_argument("--top_k", type=number(int, 0), default=50,
                   help="choose among so many tokens, 0 = all")
    p.add_argument("--seed", type=int, default=1337)
    return p.parse_args(argv)


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    model, info = open_model(args.checkpoint, args.device)
    if not isinstance(model, GPT):
        raise UserError(f"{args.checkpoint}: is a bert model, which fills gaps rather than writes "
                        "on: sample from a GPT")
    tok = get_tokenizer(info["meta"])
    ids = tok.encode(read_text(args.prompt[1:]) if args.prompt.startswith("@") else args.prompt)
    if not ids:
        raise UserError("--prompt is empty: give the text something to start with")
    torch.manual_seed(args.seed % 2**64)
    idx = torch.tensor([ids], device=args.device).expand(args.num_samples, -1)
    try:
        rows = model.generate(idx, args.max_new_tokens, args.temperature, args.top_k or None)
    except RuntimeError as e:  # weights that are NaN, a temperature next to 0, no memory
        raise UserError(f"{args.checkpoint}: cannot be sampled ({first_line(e)})") from None
    for row in rows:
        print(tok.decode(row.tolist()))
        print("-" * 80)


if __name__ == "__main__":
    main()
