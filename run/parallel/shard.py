"""
A model on several devices: whole on each, its gradients averaged (DDP), or in shards (FSDP2), so that
it need not fit one. Torch does either; here is what a run needs around it: values on their way onto
the devices and back into a checkpoint, one tensor at a time, whichever process has what.

A sharded tensor is a DTensor: `p.shape` is the whole's, `p.to_local()` this process's rows of it.
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
    """A tensor of a checkpoint that is still on the disk: shape and dtype are known, values are read on demand."""

    def into(self, tensor):
        """Fill `tensor`, whole or (a DTensor) this rank's rows of it, and return it. Not a collective."""
        raise NotImplementedError

    def value(self):
        return self.into(torch.empty(self.shape, dtype=self.dtype))


def with_values(tree):
    """`tree` with what is on the disk in memory."""
    return tree_map(lambda v: v.value() if isinstance(v, OnDisk) else v, tree)


def make_mesh(ranks, shard):
    """The devices to shard over, shard="fsdp"; None if a model is whole on each."""
    return init_device_mesh(ranks.device.type, (ranks.world,)) if ranks.several and shard == "fsdp" \
        else None


def from_rank_0(ranks, decide):
    """
    What decide() returns on rank 0, on all ranks, who need not see the same files. The others wait as
    long as it takes, and help where decide() does ranks.ask(). After a UserError, which rank 0 raises,
    they leave too. Tensors are on the meta device elsewhere: broadcast() gets their values to where they
    are wanted. Those in a checkpoint's parts each reads for itself, unless not all see that folder.
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
    Rank 0's `tensor` (elsewhere its shape and dtype count) onto all devices, whole or in shards; of a
    OnDisk one each reads what it needs. A copy: weights must not hang on a file that is mapped. What
    cannot be read is left in ranks.failed, for all to agree() on once everything is read: nobody waits
    for a rank that left.
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
    """A sharded tensor whole, on every device; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_to_cpu(tree, keep=True):
    """
    `tree` with its sharded tensors whole, on the CPU; one at a time, so that a device holds one whole
    tensor besides its shards. All ranks must call this; keep=False: the others', who get None.
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
    Put values into a model from the meta device, one tensor at a time: rank 0's of the state dict
    `saved`, or what the model's specs say, drawn on the CPU.
    """
    specs, state = model.specs(), {}
    for name, tensor in (saved or model.state_dict()).items():
        if saved is None and ranks.rank == 0:
            tensor = torch.empty(tensor.shape).normal_(specs[name].mean, specs[name].std)
        state[name] = broadcast(tensor, ranks, mesh if name in specs else None)
    model.load_state_dict(state, assign=True)


def load_optimizer(optimizer, saved, ranks, mesh):
    """Load rank 0's whole state dict: every rank has its shards of it, tensor by tensor."""
    params = [p for g in optimizer.param_groups for p in g["params"]]
    state = {i: {k: v if not isinstance(v, (torch.Tensor, OnDisk)) else
                 broadcast(v, ranks, mesh if v.shape == params[i].shape else None)
                 for k, v in values.items()} for i, values in saved["state"].items()}
    optimizer.load_state_dict({**saved, "state": state})


def wrap(model, ranks, mesh, dtype=torch.float32):
    """
    What to call to train `model`, compiled already, on all devices: it itself, or in DDP. dtype: what the
    run autocasts to.
    """
    if mesh is not None:
        return shard(model, mesh, dtype)
    if not ranks.several:
        return model
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():  # the new name came after torch 2.11
        warnings.simplefilter("ignore", FutureWarning)
        return DDP(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(model, mesh, dtype):
    """
    FSDP2 in place, a block at a time, for a model whose parameters are shards already, as materialize() and
    grow() make them. fully_shard() wants them whole: for a moment they are, on the meta device. The
    products' format is autocast's, as in DDP. Where that is bfloat16, blocks are gathered in it too, which
    is half the traffic; inputs (masks among them) stay float32, and so does what is outside the blocks,
    for embeddings make the residual stream.
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
    (batch, whether it counts): `batches`, and as long as other ranks have more of them any other if the
    model is sharded, for its ranks can only compute together. Stopped on all once stop() is true on any.
    """
    data, spare = next(batches, None), None
    while True:
        more, stopped = run.ranks.sum(torch.tensor([data is not None, stop()], dtype=torch.float32)).tolist()
        if run.mesh is not None and (stopped or not more):
            run.model.reshard()  # its own weights are still whole, for a backward pass that does not come
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
# matrices that are worked on whole, each by one process, its owner: of N in a stack, of W processes,
# process r owns those from r * ceil(N / W) on

def owned(n, rank, world):
    """The indices, of n, that `rank` owns, as a slice."""
    each = -(-n // world)
    return slice(min(rank * each, n), min((rank + 1) * each, n))


def all_gather_owned(mine, n):
    """A stack of n matrices on all processes, of those that each owns, (n_own, a, b)."""
    world = dist.get_world_size()
    each = -(-n // world)
    padded = mine.new_zeros(each, *mine.shape[1:])
    padded[:len(mine)] = mine
    out = mine.new_empty(each * world, *mine.shape[1:])
    dist.all_gather_into_tensor(out, padded)
    return out[:n]


def to_owners(rows, n_rows, mesh):
    """
    rows: this process's rows (N, a_r, b) of a stack of sharded matrices of n_rows rows. Returns the
    matrices that it owns, whole, (n_own, n_rows, b).
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
    """The way back: this process's rows, (n, a_r, b), of all n matrices."""
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
    One all-to-all: parts[r] * size numbers of `tensor`, in order, to process r; receive[r] from it.
    Returns what came, a 1-D tensor from each.
    """
    out = tensor.new_empty(sum(receive))
    dist.all_to_all_single(out, tensor.contiguous().view(-1), receive, [p * size for p in parts],
                           group=mesh.get_group())
    return out.split(receive)
