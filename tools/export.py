"""
A trained model as a Hugging Face folder, which transformers opens; the format is in run/hf.py.

    python -m tools.export out/pystdlib_msg hf/pystdlib
"""
import argparse
import os
import sys

from run.checkpoint import load_model
from run.errors import exits_cleanly
from run.hf import CLASSES, export, kind_of


@exits_cleanly
def main():
    p = argparse.ArgumentParser(description="Write a checkpoint as a Hugging Face folder.")
    p.add_argument("checkpoint", help="a checkpoint file or a run's folder")
    p.add_argument("folder", help="where to write")
    args = p.parse_args(sys.argv[1:])
    model, state = load_model(args.checkpoint)
    for name in export(model, state["meta"], args.folder, args.checkpoint):
        size = os.path.getsize(os.path.join(args.folder, name))
        print(f"{os.path.join(args.folder, name)}  {size:,} bytes")
    print(f"open it with transformers.{CLASSES[kind_of(model)]}.from_pretrained({args.folder!r})")


if __name__ == "__main__":
    main()
