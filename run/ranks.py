"""
The processes that train together and the devices under them: who is who, memory kept rather than
given back, and optimizer state sharded among the processes (ZeRO stage 1).
"""
import ctypes
import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from run.errors import UserError


class Ranks:
    """The processes that train together; one process is the same thing with world = 1."""

    def __init__(self, device):
        self.rank, self.world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        name = device if device != "auto" else "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() and self.world == 1 else "cpu"
        try:
            self.device = torch.device(f"cuda:{self.local}" if name == "cuda" else name)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError):
            raise UserError(f"device={device}: not on this machine, which has "
                            f"{torch.cuda.device_count()} CUDA devices; use --device=cpu") from None
        if self.device.type == "cpu":
            hold_memory()
        self.several = "RANK" in os.environ and self.world > 1
        if self.several:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            timeout = timedelta(seconds=int(os.environ.get("NANOGROW_TIMEOUT", 600)))
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
                # after torchrun's --max-restarts the store still holds the dead ranks' addresses
                # (of several machines each counts its own restarts: no common prefix there)
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                store = dist.PrefixStore(f"attempt_{attempt}", store)
            # gloo for tensors on CPU (agreeing to stop), nccl for those on GPUs
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                                    store=store, rank=self.rank, world_size=self.world,
                                    timeout=timeout)

    def sum(self, tensor):
        if self.several:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag):
        """True on all ranks if it is on one."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.several else bool(flag)

    def barrier(self):
        self.any(False)

    def close(self):
        if self.several:
            self.barrier()  # whoever leaves first would look like a failure to the others
            gc.collect()  # what is left of old DDP wrappers, whose threads must end before it does
            dist.destroy_process_group()


def hold_memory():
    """
    Keep freed memory rather than give it back to the kernel, which clears it before the next step
    may have it again: a twentieth of a small model's step on the CPU. glibc only; elsewhere nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, 32 << 20)     # M_MMAP_THRESHOLD: the largest it takes
        mallopt(-1, 2**31 - 1)    # M_TRIM_THRESHOLD


class Zero1:
    """
    Optimizer state sharded among the processes (ZeRO stage 1, Rajbhandari et al., 2020,
    https://arxiv.org/abs/1910.02054): each parameter has an owner, who alone keeps its state,
    updates it and sends it to the others. Torch optimizers leave out parameters without a
    gradient, so dropping those of others is all it takes, and growth, which moves what state
    there is, needs to know nothing of it.
    """

    def __init__(self, ranks, optimizers):
        self.ranks, self.optimizers = ranks, optimizers
        self.params = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        self.owners = self.assign()

    def assign(self):
        """The owner of each parameter: whoever has its state, else whoever has the least to do."""
        mine = torch.tensor([any(p in o.state for o in self.optimizers) for p in self.params])
        held = self.ranks.sum(mine * (self.ranks.rank + 1)).tolist()  # 0: state nowhere yet
        load, owners = [0] * self.ranks.world, {}
        for p, holder in zip(self.params, held):
            if holder:
                owners[p] = holder - 1
                load[holder - 1] += p.numel()
        for p in sorted(self.params, key=lambda p: -p.numel()):
            if p not in owners:
                owners[p] = load.index(min(load))
                load[owners[p]] += p.numel()
        return owners

    def drop_gradients(self):
        """Before the optimizers' step: leave to the owners what is theirs."""
        for p, owner in self.owners.items():
            if owner != self.ranks.rank:
                p.grad = None

    def share(self):
        """After the optimizers' step: everyone gets the owners' new values."""
        for work in [dist.broadcast(p.detach(), owner, async_op=True) for p, owner in self.owners.items()]:
            work.wait()

    def gather(self):
        """
        The optimizers' state dicts as one process would have them, whole on rank 0 (all ranks must
        call this), on the CPU; tensor by tensor, so that no device holds more than one foreign one.
        """
        whole = [o.state_dict() for o in self.optimizers]
        kinds = [None] * self.ranks.world
        dist.all_gather_object(kinds, [{i: {k: (v.shape, v.dtype) if torch.is_tensor(v) else v
                                            for k, v in state.items()}
                                        for i, state in w["state"].items()} for w in whole])
        for rank, theirs in enumerate(kinds):
            for mine, states in zip(whole, theirs):
                for i, state in states.items():
                    for key, kind in state.items():
                        value = self.fetch(rank, kind, mine["state"].get(i, {}).get(key))
                        if self.ranks.rank == 0:
                            mine["state"].setdefault(i, {})[key] = value
        for w in whole:
            w["state"] = dict(sorted(w["state"].items()))
        return whole

    def fetch(self, rank, kind, value):
        """`value`, which `rank` has, on rank 0's CPU; elsewhere None."""
        if not isinstance(kind, tuple):
            return kind
        if rank == self.ranks.rank == 0:
            return value.cpu()
        if self.ranks.rank == rank:
            dist.send(value.to(self.ranks.device), 0)
        elif self.ranks.rank == 0:
            value = torch.empty(kind[0], dtype=kind[1], device=self.ranks.device)
            dist.recv(value, rank)
            return value.cpu()

    def load(self, saved):
        """Load whole state dicts, but only what this process owns."""
        for o, whole in zip(self.optimizers, saved):
            params = [p for g in o.param_groups for p in g["params"]]
            o.load_state_dict({**whole, "state": {
                i: state for i, state in whole["state"].items()
                if self.owners[params[i]] == self.ranks.rank}})
