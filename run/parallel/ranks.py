"""The processes that train together and the devices under them: who is who."""
import gc
import os
import platform
import time
import uuid
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from base.errors import UserError


class Stopped(Exception):
    """A rank was asked to stop by a signal, and all ranks know."""


class Ranks:
    """The processes that train together; one process is the same thing with world = 1."""

    def __init__(self, device):
        self.rank, self.world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        name = device if device != "auto" else "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() and self.world == 1 else "cpu"
        self.device = open_device(f"cuda:{self.local}" if name == "cuda" else name)
        if self.device.type == "cuda":
            torch.set_num_threads(1)  # each copy of a batch would wake every core, which then spins
        self.several, self.start = "RANK" in os.environ and self.world > 1, ""
        self.failed = None  # a UserError that this rank met with, to agree() on later
        self.machines = self.world // int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        if self.several:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            timeout = timedelta(seconds=int(os.environ.get("NANOGROW_TIMEOUT", 600)))
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            self.start = meet(store, self.rank, self.world, timeout.seconds)
            store = dist.PrefixStore(self.start, store)
            # gloo for tensors on CPU (agreeing to stop), nccl for those on GPUs
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                                    store=store, rank=self.rank, world_size=self.world,
                                    timeout=timeout)
            # for what is done aside, and takes as long as a disk does
            self.aside = dist.new_group(backend="gloo", timeout=timedelta(days=1))
            self.store, self.waits = store, 0
        # started again by itself? each machine counts its own restarts
        self.restarted = self.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)

    def sum(self, tensor):
        if self.several:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag):
        """True on all ranks if it is on one."""
        return bool(self.sum(torch.tensor(float(bool(flag))))) if self.several else bool(flag)

    def see(self, path):
        """Do all see this path?"""
        return not self.any(not os.path.exists(path))

    def see_alike(self, folder):
        """Is rank 0's `folder`, which it can write to, the same one on all ranks?"""
        path = os.path.join(folder, f"seen_{self.start}")
        if self.rank == 0:
            open(path, "w").close()
        self.barrier()
        seen = self.see(path)
        if self.rank == 0:
            os.remove(path)
        return seen

    def barrier(self):
        self.any(False)

    def wait(self):
        """A barrier for work that may take long on some ranks: a collective would give up waiting."""
        if self.several:
            self.waits, pause = self.waits + 1, 0.01
            self.store.add(f"waiting/{self.waits}", 1)
            while self.store.add(f"waiting/{self.waits}", 0) < self.world:
                time.sleep(pause)
                pause = min(1.5 * pause, 1)  # thousands of ranks ask the one store

    def tell(self, value=None):
        """What rank 0 has to say, an object, on all ranks, whenever it says it."""
        self.wait()
        said = [value]
        dist.broadcast_object_list(said, 0, group=self.aside, device=torch.device("cpu"))
        return said[0]

    def ask(self, job):
        """On rank 0, while the others follow(): [job(rank, world) of each rank]; job: a partial."""
        if self.several and self.rank == 0:
            self.tell(job)
        found = [job(self.rank, self.world)] * self.world
        self.wait()
        if self.several:
            dist.all_gather_object(found, found[0], group=self.aside)
        return found

    def follow(self):
        """On the other ranks: do what rank 0 asks for, until it tells what came of it; that is returned."""
        while isinstance(said := self.tell(), partial):
            self.ask(said)
        return said

    def agree(self, error):
        """After work that each rank does alone: a UserError on any of them, or None, ends all; one says it."""
        first = torch.tensor(self.world if error is None else self.rank)
        if self.several:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        if first < self.world:
            raise error if first == self.rank else SystemExit(2)

    def close(self):
        if self.several:
            self.barrier()  # whoever leaves first would look like a failure to the others
            gc.collect()  # what is left of old DDP wrappers, whose threads must end before it does
            dist.destroy_process_group()


def machine(device):
    """The name of a torch.device: the GPU's, or the CPU's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{platform.machine()} CPU"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            name = next((line.split(":")[1].strip() for line in f if "model name" in line), name)
    return f"{name}, {os.cpu_count()} cores"


def open_device(name):
    """The torch.device of that name; UserError if it is not on this machine."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError):
        raise UserError(f"--device={name}: not on this machine, which has "
                        f"{torch.cuda.device_count()} CUDA devices: use --device=cpu") from None
    return device


def synchronize(device):
    """Wait until `device` has done all that it was given; on a CPU that is so."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def meet(store, rank, world, seconds):
    """
    A name for this start of the job, the same on all ranks: after a restart by torchrun the store
    still holds the addresses of the dead, and nothing in the environment tells one start from the
    next on all machines. Each rank leaves a name of its own, rank 0 answers to that, so that nobody
    is taken in by what an earlier start left there. Raises UserError after `seconds`.
    """
    me = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", me)
        start = store.get(f"start/{me}").decode()  # waits for it
        store.set(f"met/{start}/{rank}", "")
        return start
    missing, until = set(range(1, world)), time.monotonic() + seconds
    while missing:
        for r in list(missing):
            if store.check([f"met/{me}/{r}"]):
                missing.remove(r)
            elif store.check([f"here/{r}"]):
                store.set(f"start/{store.get(f'here/{r}').decode()}", me)
        if missing and time.monotonic() > until:
            raise UserError(f"{len(missing)} of {world} processes (rank {min(missing)} ...) did not "
                            f"come within {seconds} s: are all machines started? NANOGROW_TIMEOUT "
                            "sets how long to wait")
        time.sleep(0.01)
    return me
