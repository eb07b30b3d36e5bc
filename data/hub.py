"""Datasets on the Hugging Face hub."""
import errno

from base.errors import UserError, first_line, library


def open_dataset(name, split):
    """
    Iterate over the records (dicts) of a split of OWNER/NAME or OWNER/NAME:CONFIG, streamed over the
    network. Raises UserError, also during the iteration.
    """
    load = library("datasets", "datasets").load_dataset
    path, _, config = name.partition(":")
    try:
        yield from load(path, config or None, split=split, streaming=True)
    except Exception as e:  # no network, no such name, part or split, ...
        if getattr(e, "errno", None) == errno.ENOSPC:
            raise
        if isinstance(e, ConnectionError):
            advice = (f"where there is a network, hf download {path} --repo-type=dataset "
                      "--local-dir=my_texts; then here, python data/text/prepare.py --input my_texts")
        elif "script" in str(e):
            advice = "pip install 'datasets<4', which can run it, or name another copy with --dataset"
        else:
            advice = ("check the name at huggingface.co/datasets: --dataset=OWNER/NAME, or "
                      "--dataset=OWNER/NAME:CONFIG where it has several, and --split=NAME")
        said = first_line(" ".join(str(e).split())[:300] or e)
        raise UserError(f"--dataset={name}: cannot be read ({type(e).__name__}: {said}): {advice}") \
            from None
