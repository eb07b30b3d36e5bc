"""
Read and write the safetensors weights of a Hugging Face folder, in one file or in shards. Tensors are
handled one by one, so only one or two are in memory, however large the model.
"""
import json
import os
from collections.abc import Mapping

import torch

from base.disk import write_json
from base.errors import UserError, first_line, library
from base.reading import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = r"model-\d{5}-of-\d{5}\.safetensors"  # as a regular expression
DTYPES = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)


class Weights(Mapping):
    """{name: tensor}. Each tensor is read from disk when accessed. Raises UserError."""

    def __init__(self, folder):
        self.folder, self.safe_open = folder, library("safetensors", "safetensors").safe_open
        if os.path.exists(os.path.join(folder, WHOLE)):
            self.file = dict.fromkeys(self.read(WHOLE, lambda f: f.keys()), WHOLE)
        else:
            self.file = read_json(os.path.join(folder, INDEX), weight_map=dict)["weight_map"]

    def read(self, file, what):
        try:  # reopened each time: an open file keeps its tensors in memory
            with self.safe_open(os.path.join(self.folder, file), "pt") as f:
                return what(f)
        except Exception as e:  # a damaged file may raise anything
            raise UserError(f"{self.folder}: {file} cannot be read ({first_line(e)})") from None

    def __getitem__(self, name):
        self.dtype(name)  # refuses quantized weights
        return self.read(self.file[name], lambda f: f.get_tensor(name).clone())

    def dtype(self, name):
        """The dtype as safetensors names it, a key of DTYPES. UserError for quantized weights."""
        found = self.read(self.file[name], lambda f: f.get_slice(name).get_dtype())
        if found not in DTYPES:
            raise UserError(f"{self.folder}: {name} is {found}: only {', '.join(DTYPES)} can be read")
        return found

    def __iter__(self):
        return iter(self.file)

    def __len__(self):
        return len(self.file)


def size_of(dtype, shape):
    """Size of a tensor in bytes."""
    return DTYPES[dtype].itemsize * torch.Size(shape).numel()


def write_weights(folder, entries, shard_size=5 * 10**9):
    """
    Write files of at most shard_size bytes (or a single tensor), with an index if there are several.
    entries: [(name, key of DTYPES, shape, function that makes the tensor)]. A tensor is made just
    before it is written, and freed afterwards. Raises OSError.
    """
    shards, total = [[]], 0
    for entry in entries:
        size = size_of(*entry[1:3])
        if shards[-1] and sum(size_of(*e[1:3]) for e in shards[-1]) + size > shard_size:
            shards.append([])
        shards[-1].append(entry)
        total += size
    names = [WHOLE] if len(shards) == 1 else [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        write_shard(os.path.join(folder, name), shard)
    if len(shards) > 1:
        write_json(os.path.join(folder, INDEX), dict(metadata=dict(total_size=total), weight_map={
            entry[0]: name for name, shard in zip(names, shards) for entry in shard}))


def write_shard(path, entries):
    """Write one safetensors file: the header's length, the header, the tensors."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, _ in entries:
        start, end = end, end + size_of(dtype, shape)
        header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape, make in entries:
            tensor = make().detach().to("cpu", DTYPES[dtype]).contiguous()
            assert tensor.shape == torch.Size(shape), name
            f.write(tensor.flatten().view(torch.uint8).numpy())
