"""
Checkpoints that several ranks write together with torch.distributed.checkpoint (DCP). Each rank writes
its part into a folder while training continues. Then rank 0 writes the small checkpoint file, which
lists the parts and their checksums. Without that file the folder does not count.

DCP's own index is a pickle, which could run code, so it is neither written nor read. The checkpoint
file holds the same information as plain numbers.
"""
import contextlib
import errno
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor
from torch.utils._pytree import keystr, tree_map_with_path

from base.disk import Sealed, locked, patiently, sha256, sync_dir
from base.errors import UserError, first_line
from run.parallel.shard import OnDisk

SMALL = 64  # elements: tensors up to this size go into rank 0's file
PLAIN = dict(flatten_state_dict=False, flatten_sharded_tensors=False)


def save(state, folder, ranks, copies, commit):
    """
    Copy this rank's part to the CPU and write it in the background. Call on all ranks. When all parts are
    on disk, rank 0 calls commit(state): `state` with meta tensors for those in parts, and the index
    `parts`. Returns a Future; its exception is the same on all ranks.
    """
    mine, rest = split(state, ranks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcp.async_save(
            mine, storage_writer=Writer(folder, lambda parts: commit({**rest, "parts": parts})),
            async_stager=copies, planner=dcp.DefaultSavePlanner(**PLAIN), process_group=ranks.aside)


def split(state, ranks):
    """
    ({name: tensor} that this rank writes, the state without tensors in parts). A rank writes its own
    shards. Tensors that all ranks have are divided among them, the largest first.
    """
    mine, common, load = {}, {}, [0] * ranks.world

    def outline(path, v):
        if not torch.is_tensor(v):
            return v
        if not isinstance(v, DTensor):
            if v.numel() <= SMALL:
                return v.detach().to("cpu", copy=True)
            common[keystr(path)] = v
        elif v.to_local().numel():
            mine[keystr(path)] = v
        return torch.empty(v.shape, dtype=v.dtype, device="meta")
    rest = tree_map_with_path(outline, state)
    for name, v in sorted(common.items(), key=lambda item: -item[1].numel()):
        owner = load.index(min(load))
        load[owner] += v.numel()
        if owner == ranks.rank:
            mine[name] = v
    return mine, rest


class CPUStager(BlockingAsyncStager):
    """Copies what a rank writes to CPU buffers, which are reused from save to save."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    @torch.no_grad()
    def stage(self, state_dict):
        had, self.kept, staged = self.kept, {}, {}
        for name, v in state_dict.items():
            local = v.to_local() if isinstance(v, DTensor) else v
            copy = had.pop(name, None)
            if copy is None or copy.shape != local.shape or copy.dtype != local.dtype:
                copy = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self.kept[name] = copy.copy_(local, non_blocking=True)
            staged[name] = copy
            if isinstance(v, DTensor):  # keeps the record of which rows these are
                staged[name] = v.detach()
                staged[name]._local_tensor = copy
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return staged


class Disk(FileSystem):
    """DCP's file system, recording the size and digest of each file written."""

    def __init__(self):
        self.written = {}

    @contextlib.contextmanager
    def create_stream(self, path, mode):
        with super().create_stream(path, mode) as f:
            if mode != "wb":
                yield f
                return
            sealed = Sealed(f)
            yield sealed
        self.written[os.path.basename(path)] = os.path.getsize(path), sealed.digest.digest()


class Writer(dcp.FileSystemWriter):
    def __init__(self, folder, commit):
        super().__init__(folder, per_thread_copy_ahead=0)  # the data is in CPU memory already
        self.fs, self.commit = Disk(), commit

    def write_data(self, plan, planner):
        write = super().write_data
        results = patiently(lambda: write(plan, planner).value())
        sync_dir(self.path)
        done = torch.futures.Future()
        done.set_result((self.fs.written, results))
        return done

    def finish(self, metadata, results):
        files = {name: said for written, _ in results for name, said in written.items()}
        where = {w.index: w.storage_data for _, writes in results for w in writes}

        def places(name, chunks):
            for c in chunks:
                at = where[MetadataIndex(name, c.offsets)]
                yield tuple(c.offsets), tuple(c.sizes), at.relative_path, at.offset, at.length
        self.commit(dict(folder=os.path.basename(self.path), files=files, tensors={
            name: list(places(name, m.chunks)) for name, m in metadata.state_dict_metadata.items()}))


class Reader(dcp.FileSystemReader):
    """Reads one tensor whose places are known, without DCP's index."""

    def __init__(self, stored):
        super().__init__(stored.folder.path)
        self.stored = stored

    def read_metadata(self, *args, **kwargs):
        name, places = self.stored.name, self.stored.places
        chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size, *_ in places]
        kind = TensorStorageMetadata(TensorProperties(dtype=self.stored.dtype), self.stored.shape, chunks)
        return Metadata({name: kind}, storage_data={
            MetadataIndex(name, at): SimpleNamespace(relative_path=file, offset=offset, length=length,
                                                     transform_descriptors=None)
            for at, _, file, offset, length in places})


@dataclass
class Stored(OnDisk):
    """A tensor in the parts of a checkpoint, read on demand."""
    folder: "Folder"
    name: str
    shape: torch.Size
    dtype: torch.dtype
    places: list  # (offsets, sizes, file, offset in it, length) of each piece

    def into(self, tensor):
        """Fill `tensor`, or this rank's rows of it if it is a DTensor. Not a collective."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP warns that one process reads alone
            try:
                dcp.load({self.name: tensor}, storage_reader=Reader(self), no_dist=True,
                         planner=dcp.DefaultLoadPlanner(**PLAIN))
            except CheckpointException as e:  # a BaseException, not an Exception
                why = next((w for w, _ in e.failures.values()), e)
                raise UserError(f"{self.folder.path}: cannot be read ({first_line(why)}): go on from "
                                "another checkpoint") from None
        return tensor


class Folder:
    """
    A parts folder that is being read. While this object lives on any rank, the run that wrote the folder
    does not delete it. Raises FileNotFoundError if the folder is gone; a rank that received the object
    from another raises nothing if the folder is missing, because it may not see the same disk.
    """

    def __init__(self, path, from_another=False):
        self.path = path
        with contextlib.suppress(FileNotFoundError) if from_another else contextlib.nullcontext():
            self.file = open(first(path), "rb")
            if not locked(self.file, shared=True):
                raise FileNotFoundError(errno.ENOENT, "being deleted", path)

    def __reduce__(self):
        return Folder, (self.path, True)


def first(folder):
    """The file in a parts folder that readers lock."""
    return os.path.join(folder, min(os.listdir(folder), default=""))


def delete(folder):
    """Delete a parts folder unless it is being read."""
    try:
        with open(first(folder), "r+b") as file:
            if locked(file):
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # an empty folder
        shutil.rmtree(folder, ignore_errors=True)


def alone(job):
    """Ranks.ask() for a single process."""
    return [job(0, 1)]


def check(folder, parts, ask):
    """Raise ValueError or OSError, naming the file, if a part is damaged or missing."""
    if unknown := {p[2] for places in parts["tensors"].values() for p in places} - parts["files"].keys():
        raise ValueError(f"its part {unknown.pop()} has no checksum")
    faults = ask(partial(check_share, folder, parts["files"]))
    if BLIND in faults:  # some rank cannot see the folder: rank 0 checks everything
        faults = [check_share(folder, parts["files"], 0, 1)]
    for fault in filter(None, faults):
        raise fault


BLIND = "does not see the folder"


def check_share(folder, files, rank, world):
    """Check this rank's share of the files. Returns None, an error, or BLIND."""
    if not os.path.isdir(folder):
        return BLIND

    def look(item):
        name, (size, digest) = item
        path = os.path.join(folder, name)
        if os.path.getsize(path) != size or sha256(path, size) != digest:
            raise ValueError(f"its part {path} is damaged")
    mine = sorted(files.items(), key=lambda item: item[1])[rank::world]
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(look, mine))
    except (ValueError, OSError) as e:
        return e


def stored(state, parts, folder):
    """A saved state with a Stored for each tensor in its parts. folder: a Folder."""
    return tree_map_with_path(lambda path, v: v if not torch.is_tensor(v) or not v.is_meta else Stored(
        folder, keystr(path), v.shape, v.dtype, parts["tensors"][keystr(path)]), state)
