"""
Text from a trained GPT.

    python sample.py out/pystdlib_msg --prompt="def " --max_new_tokens=400
"""
import argparse
import sys

import torch

from data.tokenizer import get_tokenizer
from model import GPT
from run.checkpoint import load_model
from run.errors import UserError, exits_cleanly


def parse(argv):
    p = argparse.ArgumentParser(description="Text from a trained GPT.")
    p.add_argument("checkpoint", help="a checkpoint file or a run's folder")
    p.add_argument("--prompt", default="\n", help="what the text starts with; @FILE reads a file")
    p.add_argument("--num_samples", type=int, default=1)
    p.add_argument("--max_new_tokens", type=int, default=500)
    p.add_argument("--temperature", type=float, default=0.8, help="0 = always the likeliest token")
    p.add_argument("--top_k", type=int, default=50, help="choose among so many tokens, 0 = all")
    p.add_argument("--seed", type=int, default=1337)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args(argv)


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    model, state = load_model(args.checkpoint, args.device)
    if not isinstance(model, GPT):
        raise UserError(f"{args.checkpoint}: is a {state['config']['model']} model, which fills "
                        "gaps rather than writes on: sample from a GPT")
    tok = get_tokenizer(state["meta"])
    prompt = args.prompt
    if prompt.startswith("@"):
        try:
            with open(prompt[1:]) as f:
                prompt = f.read()
        except OSError as e:
            raise UserError(f"{prompt[1:]}: {e.strerror}") from None
    ids = tok.encode(prompt)
    if not ids:
        raise UserError("--prompt is empty: give the text something to start with")
    torch.manual_seed(args.seed)
    idx = torch.tensor([ids], device=args.device).expand(args.num_samples, -1)
    for row in model.generate(idx, args.max_new_tokens, args.temperature, args.top_k or None):
        print(tok.decode(row.tolist()))
        print("-" * 80)


if __name__ == "__main__":
    main()
