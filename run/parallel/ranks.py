"""The ranks of a run and their devices: starting up, agreeing, waiting, broadcasting objects."""
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
    """A signal asked some rank to stop; it is raised on all ranks."""


class Ranks:
    """This process's rank among all ranks. A single process has world = 1."""

    def __init__(self, device):
        self.rank, self.world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        name = device if device != "auto" else "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() and self.world == 1 else "cpu"
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))  # processes on this machine
        if here > 1 and ":" in name and torch.cuda.device_count() > 1:
            raise UserError(f"--device={name}: is one device, and there are {here} processes: use "
                            f"--device={name.split(':')[0]}, and each takes its own")
        self.device = open_device(f"cuda:{self.local}" if name == "cuda" else name)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what has no device of its own, synchronize() too, is for this one
            torch.set_num_threads(1)  # otherwise each batch copy wakes all cores, which then spin
        self.several, self.start = "RANK" in os.environ and self.world > 1, ""
        self.failed = None  # a UserError on this rank, to agree() on later
        self.machines = self.world // here
        if self.several:
            wait = os.environ.get("NANOGROW_TIMEOUT", "600")
            if not (wait.isdecimal() and int(wait)):
                raise UserError(f"NANOGROW_TIMEOUT={wait}: must be a whole number of seconds, at least 1")
            timeout = timedelta(seconds=int(wait))
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            self.start = meet(store, self.rank, self.world, timeout.seconds)
            store = dist.PrefixStore(self.start, store)
            # gloo for tensors on CPU (agreeing to stop), nccl for those on GPUs
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                                    store=store, rank=self.rank, world_size=self.world,
                                    timeout=timeout)
            # for background saves, which may be as slow as the disk
            self.aside = dist.new_group(backend="gloo", timeout=timedelta(days=1))
            self.store, self.waits = store, 0
        # restarted by torchrun? each machine counts its own restarts
        self.restarted = self.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)

    def sum(self, tensor):
        if self.several:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag):
        """True on all ranks if `flag` is true on any."""
        return bool(self.sum(torch.tensor(float(bool(flag))))) if self.several else bool(flag)

    def see(self, path):
        """Does this path exist on all ranks?"""
        return not self.any(not os.path.exists(path))

    def see_alike(self, folder):
        """Do all ranks see rank 0's `folder`? Rank 0 must be able to write to it."""
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
        """A barrier without a timeout, for slow work on some ranks; a collective would time out."""
        if self.several:
            self.waits, pause = self.waits + 1, 0.01
            self.store.add(f"waiting/{self.waits}", 1)
            while self.store.add(f"waiting/{self.waits}", 0) < self.world:
                time.sleep(pause)
                pause = min(1.5 * pause, 1)  # thousands of ranks poll one store

    def tell(self, value=None):
        """Broadcast an object from rank 0. The others wait for it as long as it takes."""
        self.wait()
        said = [value]
        dist.broadcast_object_list(said, 0, group=self.aside, device=torch.device("cpu"))
        return said[0]

    def ask(self, job):
        """Run job(rank, world), a partial, on all ranks; returns their results. The others follow()."""
        if self.several and self.rank == 0:
            self.tell(job)
        found = [job(self.rank, self.world)] * self.world
        self.wait()
        if self.several:
            dist.all_gather_object(found, found[0], group=self.aside)
        return found

    def follow(self):
        """On ranks above 0: run the jobs that rank 0 asks for; returns the first object it tells instead."""
        while isinstance(said := self.tell(), partial):
            self.ask(said)
        return said

    def agree(self, error):
        """
        After work that each rank did alone: end all ranks if any has an error. error: this rank's
        UserError, or None. Only the lowest failing rank raises it; the others exit.
        """
        first = torch.tensor(self.world if error is None else self.rank)
        if self.several:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        if first < self.world:
            raise error if first == self.rank else SystemExit(2)

    def close(self):
        if self.several:
            self.barrier()  # a rank that leaves early looks like a failure to the others
            gc.collect()  # threads of old DDP wrappers must end before the process group
            dist.destroy_process_group()


def machine(device):
    """The hardware behind a torch.device: the GPU's name, or the CPU's with its cores and vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{platform.machine()} CPU"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            name = next((line.split(":")[1].strip() for line in f if "model name" in line), name)
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def open_device(name):
    """The torch.device `name`. UserError if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError):
        raise UserError(f"--device={name}: not on this machine, which has "
                        f"{torch.cuda.device_count()} CUDA devices: use --device=cpu") from None
    return device


def synchronize(device):
    """Wait until `device` has finished its queued work. A CPU has no queue."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def meet(store, rank, world, seconds):
    """
    Agree on a unique name for this start of the job. After a restart by torchrun the store still holds
    the dead processes' addresses, and no environment variable tells the starts apart on all machines.
    Each rank posts a random name, and rank 0 replies to exactly that name. So leftovers of an earlier
    start are ignored. Raises UserError after `seconds`.
    """
    me = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", me)
        start = store.get(f"start/{me}").decode()  # blocks until it is set
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
