"""
A model on several devices: replicated (DDP) or sharded (FSDP2), so that it need not fit on one. Torch
does both. This file moves values onto the devices and back into a checkpoint, one tensor at a time.

A sharded tensor is a DTensor: `p.shape` is the full shape, `p.to_local()` holds this rank's rows.
"""
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor import empty as empty_shards
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils._pytree import tree_leaves, tree_map

from base.errors import UserError
from grow import put
from run.parallel.ranks import Stopped


class OnDisk:
    """A checkpoint's tensor that is still on disk. It has shape and dtype; values are read on demand."""

    def into(self, tensor):
        """Fill `tensor`, or this rank's rows of it if it is a DTensor. Not a collective. Returns it."""
        raise NotImplementedError

    def value(self):
        return self.into(torch.empty(self.shape, dtype=self.dtype))


def with_values(tree):
    """`tree` with its OnDisk tensors read into memory."""
    return tree_map(lambda v: v.value() if isinstance(v, OnDisk) else v, tree)


def make_mesh(ranks, shard):
    """The devices to shard over if shard="fsdp"; None if the model is replicated."""
    return init_device_mesh(ranks.device.type, (ranks.world,)) if ranks.several and shard == "fsdp" \
        else None


def from_rank_0(ranks, decide):
    """
    Run decide() on rank 0 and return its result on all ranks; only rank 0 needs to see the files. The
    others wait without a timeout, and help when decide() calls ranks.ask(). A UserError on rank 0 ends
    all ranks. On the other ranks tensors are on the meta device; broadcast() delivers their values.
    OnDisk tensors are read by each rank itself, unless some rank does not see the folder.
    """
    if not ranks.several:
        return decide()
    if ranks.rank == 0:
        try:
            state = decide()
            said = tree_map(lambda v: v.to("meta") if torch.is_tensor(v) else v, state)
        except UserError as e:
            said = e
        ranks.tell(said)
    else:
        said = state = ranks.follow()
    if isinstance(said, UserError):
        raise said if ranks.rank == 0 else SystemExit(2)
    parts = [v for v in tree_leaves(state) if isinstance(v, OnDisk)]
    if parts and not ranks.see(parts[0].folder.path):
        error = None
        try:
            state = with_values(state) if ranks.rank == 0 else tree_map(
                lambda v: torch.empty(v.shape, dtype=v.dtype, device="meta") if isinstance(v, OnDisk)
                else v, state)
        except UserError as e:
            error = e
        ranks.wait()
        ranks.agree(error)
    return state


def broadcast(tensor, ranks, mesh):
    """
    Send rank 0's `tensor` to all devices, replicated or sharded. Other ranks pass one of the same shape
    and dtype. Of an OnDisk tensor each rank reads what it needs. The result is always a copy, because
    weights must not depend on a memory-mapped file. A read error is kept in ranks.failed until all ranks
    agree() on it after the last read; otherwise the others would wait for a rank that has left.
    """
    if isinstance(tensor, OnDisk):
        here = empty_shards(tensor.shape, dtype=tensor.dtype, device_mesh=mesh, placements=[Shard(0)]) \
            if mesh is not None and len(tensor.shape) else \
            torch.empty(tensor.shape, dtype=tensor.dtype, device=ranks.device)
        try:
            return tensor.into(here)
        except UserError as e:
            ranks.failed = e
            return here
    value = tensor.to(ranks.device, copy=True) if ranks.rank == 0 or not ranks.several else \
        torch.empty(tensor.shape, dtype=tensor.dtype, device=ranks.device)
    if mesh is not None and tensor.dim():
        return distribute_tensor(value, mesh, [Shard(0)])
    if ranks.several:
        dist.broadcast(value, 0)
    return value


def gather(tensor):
    """The full tensor of a sharded one, on every rank; any other value unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_to_cpu(tree, keep=True):
    """
    `tree` with its sharded tensors gathered on the CPU. They are gathered one at a time, so a device
    holds one full tensor besides its shards. All ranks must call this. With keep=False a rank takes part
    but gets None for them.
    """
    def to_cpu(value):
        if not isinstance(value, DTensor):
            return value
        value = gather(value)
        return value.cpu() if keep else None
    return tree_map(to_cpu, tree)


@torch.no_grad()
def materialize(model, ranks, mesh, saved=None):
    """
    Give a model on the meta device its values, one tensor at a time. They come from rank 0's state dict
    `saved`, or are drawn on the CPU as the model's specs say.
    """
    specs, state = model.specs(), {}
    for name, tensor in (saved or model.state_dict()).items():
        if saved is None and ranks.rank == 0:
            tensor = torch.empty(tensor.shape).normal_(specs[name].mean, specs[name].std)
        state[name] = broadcast(tensor, ranks, mesh if name in specs else None)
    model.load_state_dict(state, assign=True)


def load_optimizer(optimizer, saved, ranks, mesh):
    """Load rank 0's full state dict, sharding it tensor by tensor."""
    params = [p for g in optimizer.param_groups for p in g["params"]]
    state = {i: {k: v if not isinstance(v, (torch.Tensor, OnDisk)) else
                 broadcast(v, ranks, mesh if v.shape == params[i].shape else None)
                 for k, v in values.items()} for i, values in saved["state"].items()}
    optimizer.load_state_dict({**saved, "state": state})


def wrap(model, ranks, mesh, dtype=torch.float32):
    """
    Prepare `model`, already compiled, for training on all devices. Returns the module to call: the model
    itself, or DDP around it. dtype: the run's autocast dtype.
    """
    if mesh is not None:
        return shard(model, mesh, dtype)
    if not ranks.several:
        return model
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():  # broadcast_buffers has a new name that torch 2.11 lacks
        warnings.simplefilter("ignore", FutureWarning)
        return DDP(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(model, mesh, dtype):
    """
    Apply FSDP2 in place, block by block, to a model whose parameters are already sharded (by materialize()
    or grow()). fully_shard() expects full parameters, so it gets placeholders on the meta device. Matrix
    products use autocast's dtype, as in DDP. With bfloat16, blocks are gathered in bfloat16 too, which
    halves the traffic. Inputs (including masks) stay float32. So do parameters outside the blocks, because
    the embeddings form the residual stream.
    """
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False) \
        if dtype == torch.bfloat16 else MixedPrecisionPolicy(cast_forward_inputs=False)
    shards = dict(model.named_parameters())
    put(model, {name: torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"),
                                         p.requires_grad) for name, p in shards.items()})
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    put(model, shards)
    return model


def in_lockstep(run, batches, stop):
    """
    Yield (batch, whether it counts) for each of `batches`. Ranks of a sharded model must compute together.
    So a rank that runs out gets a spare batch, which does not count, until all have finished. Raises
    Stopped on all ranks once stop() is true on any.
    """
    data, spare = next(batches, None), None
    while True:
        more, stopped = run.ranks.sum(torch.tensor([data is not None, stop()], dtype=torch.float32)).tolist()
        if run.mesh is not None and (stopped or not more):
            run.model.reshard()  # the root's weights stay gathered for a backward pass that never comes
        if stopped:
            raise Stopped
        if not more:
            break
        if data is None and run.mesh is not None:
            spare = spare or {k: v[:1] for k, v in run.loader.batch(0).items()}
        if data is not None or run.mesh is not None:
            yield data or spare, data is not None
        data = next(batches, None)


# -----------------------------------------------------------------------------
# full matrices, each processed by its owner rank: of a stack of N matrices on W ranks, rank r owns
# ceil(N / W), starting at r * ceil(N / W)

def owned(n, rank, world):
    """The slice of n indices that `rank` owns."""
    each = -(-n // world)
    return slice(min(rank * each, n), min((rank + 1) * each, n))


def all_gather_owned(mine, n):
    """All-gather the matrices that each rank owns, (n_own, a, b), into the full stack (n, a, b)."""
    world = dist.get_world_size()
    each = -(-n // world)
    padded = mine.new_zeros(each, *mine.shape[1:])
    padded[:len(mine)] = mine
    out = mine.new_empty(each * world, *mine.shape[1:])
    dist.all_gather_into_tensor(out, padded)
    return out[:n]


def to_owners(rows, n_rows, mesh):
    """
    Send row shards to the matrices' owners. rows: this rank's rows (N, a_r, b) of a stack of N sharded
    matrices with n_rows rows. Returns the full matrices that it owns, (n_own, n_rows, b).
    """
    world, rank = mesh.size(), mesh.get_local_rank()
    n, b = len(rows), rows.size(2)
    mine = owned(n, rank, world)
    have = mine.stop - mine.start
    heights = [s.stop - s.start for s in (owned(n_rows, r, world) for r in range(world))]
    came = exchange(rows, [s.stop - s.start for s in (owned(n, r, world) for r in range(world))],
                    rows.size(1) * b, [have * h * b for h in heights], mesh)
    return torch.cat([part.view(have, h, b) for part, h in zip(came, heights)], dim=1)


def from_owners(matrices, n, mesh):
    """The inverse of to_owners(): returns this rank's rows (n, a_r, b) of all n matrices."""
    world, rank = mesh.size(), mesh.get_local_rank()
    n_rows, b = matrices.shape[1:]
    parts = [matrices[:, owned(n_rows, r, world)] for r in range(world)]
    mine = owned(n_rows, rank, world)
    counts = [s.stop - s.start for s in (owned(n, r, world) for r in range(world))]
    came = exchange(torch.cat([p.flatten() for p in parts]), [p.numel() for p in parts], 1,
                    [c * (mine.stop - mine.start) * b for c in counts], mesh)
    return torch.cat(came).view(n, mine.stop - mine.start, b)


def exchange(tensor, parts, size, receive, mesh):
    """
    One all-to-all: send parts[r] * size elements of `tensor`, in order, to rank r, and receive receive[r]
    from it. Returns a 1-D tensor from each rank.
    """
    out = tensor.new_empty(sum(receive))
    dist.all_to_all_single(out, tensor.contiguous().view(-1), receive, [p * size for p in parts],
                           group=mesh.get_group())
    return out.split(receive)
