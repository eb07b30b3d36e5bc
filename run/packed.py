"""
A study's raw runs as one file, runs.tar.xz, beside its report.

    tar -tf results/frontier/runs.tar.xz                        # list what is in it
    python -m run.packed results/frontier                       # pack the runs that lie there
    python -m run.packed out/mine results/mine                  # copy a finished study's runs, then pack them

Commands that read runs also accept a packed study's folder, or the path of a run in it: unpacked()
puts the runs there. Git ignores them.
"""
import io
import json
import lzma
import os
import re
import tarfile
from pathlib import Path

from base.disk import written
from base.errors import Parser, UserError, exits_cleanly
from base.reading import read_json

PACK = "runs.tar.xz"
KINDS = (".json", ".jsonl", ".txt", ".png")  # measured values only: no checkpoints, no source
SAID = ("run.txt", "log.txt", "source.txt")  # nor what it said meanwhile, or of its source


def unpacked(path):
    """
    The path, ~ expanded; for argparse's `type`. If it is or lies in a packed study's folder, the runs
    missing beside the pack are unpacked there.
    """
    path = os.path.expanduser(path)
    here = Path(path).absolute()
    for folder in (here, *here.parents):
        if (folder / PACK).is_file():
            unpack(folder)
    return path


def unpack(folder):
    try:
        with tarfile.open(folder / PACK) as tar:
            for member in tar:
                to = folder / member.name
                if not to.resolve().is_relative_to(folder.resolve()):
                    raise UserError(f"{folder / PACK}: {member.name}: lies outside of it")
                if member.isfile() and not to.exists():
                    to.parent.mkdir(parents=True, exist_ok=True)
                    with written(to, "wb") as f:
                        f.write(tar.extractfile(member).read())
    except (tarfile.TarError, lzma.LZMAError, EOFError) as e:
        raise UserError(f"{folder / PACK}: is damaged ({e}): get it again") from None


def measured(folder):
    """{path in the folder: bytes} of the files that its runs measured, sorted."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.parent != folder and p.suffix in KINDS and p.name not in SAID}


def pack(folder):
    """Pack all runs in the folder, the same bytes for the same runs. Returns the number of runs."""
    unpacked(folder)
    if not (files := measured(folder)):
        raise UserError(f"{folder}: no runs in it")
    with written(folder / PACK, "wb") as f, tarfile.open(
            fileobj=f, mode="w:xz", format=tarfile.GNU_FORMAT, preset=9) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # without date and owner
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return sum(name.endswith(".jsonl") for name in files)


def copy(folder, into):
    """Copy a study's report and its runs' measurements, without the folder names of this machine."""
    files = {**measured(folder), **{p.name: p.read_bytes() for p in folder.iterdir()
                                    if p.suffix in (".json", ".md", ".png")}}
    for name in [n for n in files if os.path.basename(n) == "config.json"]:
        config = read_json(folder / name)
        config.update({k: os.path.basename(str(config[k])) for k in ("out_dir", "init_from", "data_dir")
                       if k in config and (k != "data_dir" or os.path.isabs(str(config[k])))})
        if isinstance(config.get("resolved"), dict):
            config["resolved"].pop("data_dir", None)
        files[name] = json.dumps(config, indent=1).encode()
    for name in [n for n in files if os.path.basename(n) == "metrics.jsonl"]:
        files[name] = re.sub(rb', "data_dir": "[^"]*"', b"", files[name])  # in start events
    for name, content in files.items():
        if name.endswith(("config.json", "metrics.jsonl")) and (into / name).exists() and \
                (into / name).read_bytes() != content:
            raise UserError(f"{into}: has another {name}: choose another folder, or delete that run there")
    for name, content in files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(content)


@exits_cleanly
def main():
    p = Parser(prog="python -m run.packed", description=__doc__.splitlines()[1])
    p.add_argument("folder", type=unpacked, help="of the study")
    p.add_argument("into", type=unpacked, nargs="?", help="where to copy it first, such as results/mine")
    args = p.parse_args()
    folder = Path(args.into or args.folder)
    if not os.path.isdir(args.folder):
        raise UserError(f"{args.folder}: no such folder")
    if args.into:
        if os.path.realpath(args.into) == os.path.realpath(args.folder):
            raise UserError(f"{args.into}: is the study's own folder: leave it out, or choose another")
        copy(Path(args.folder), folder)
    print(f"{folder / PACK}: {pack(folder)} runs")


if __name__ == "__main__":
    main()
