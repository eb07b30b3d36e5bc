"""Jobs of tests/ranks_driver.py that are no whole runs: what they print, test_distributed.py reads."""
import json
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from types import SimpleNamespace

import torch
import torch.distributed as dist
from runs import TINY
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import run.monitor
import run.parallel.ranks
import train
from base import disk
from base.errors import UserError
from grow import grow, set_mask
from model import GPT, GPTConfig
from run import optim
from run.checkpoint import checkpoint, sharded
from run.checkpoint.saver import Saver
from run.optim import make_optimizers
from run.parallel import shard
from run.settings import from_dict


def fault(rank, save=0, bytes=None, commit=False, read=None, evaluating=None, data=None):
    """
    data: this rank finds other data ("other") or none where rank 0 has its own. Or
    evaluating: this rank gets a SIGTERM in the evaluation of that iteration, which would not end soon. Or
    This rank is shot when its part of the save-th checkpoint has so many bytes, or (commit) before
    that becomes valid; or every write of that part fails; or (read) it can read no part, once they were
    all checked, "gone" for that they are deleted by then.
    """
    if data:
        def elsewhere(folder, meta):
            if data == "other":
                return "other"
            raise UserError("no data there")
        train.fingerprint = elsewhere
        return
    if evaluating is not None:
        evaluate = run.monitor.evaluate

        def endless(run, batches=None, *args):
            several = run.loader.eval_batches

            def eval_batches():
                for n in range(100):
                    if n == 2:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield next(several())
                raise AssertionError("the signal was not heard")
            if run.iter == evaluating and batches is None:
                run.loader.eval_batches = eval_batches
            return evaluate(run, batches, *args)
        run.monitor.evaluate = endless
        return
    if read:
        def unreadable(self, plan, planner):
            if read == "gone":
                shutil.rmtree(self.stored.folder.path, ignore_errors=True)
                return look(self, plan, planner)
            raise OSError(5, "Input/output error")
        look, sharded.Reader.read_data = sharded.Reader.read_data, unreadable
        return
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    write, replace, count = sharded.Writer.write_data, os.replace, [0]
    disk.PAUSES = (0, 0)

    class Cut(disk.Sealed):
        def write(self, data):
            if count[0] == save and self.tell() + len(data) > bytes:
                self.file.write(data[:bytes - self.tell()])
                self.file.flush()
                die()
            return super().write(data)

    def counted(self, plan, planner):
        count[0] += 1
        return write(self, plan, planner)

    def failing(data):
        if count[0] == save:
            raise OSError(28, "No space left on device")
    sharded.Writer.write_data = counted
    if bytes is not None:
        sharded.Sealed = Cut
    elif commit:
        os.replace = lambda *args: die() if count[0] == save else replace(*args)
    else:
        sharded.sync_dir = failing


def rss(key):
    """In MiB: VmRSS, what this process holds; VmHWM, the most since the mark was last set down."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key)) / 1024


def make(ranks, sizes, how="fsdp", **settings):
    """A model on the ranks, as train.py makes it, and its optimizers after a step on gradients of 0."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**sizes))
    mesh = shard.make_mesh(ranks, how)
    torch.manual_seed(0)
    shard.materialize(model, ranks, mesh)
    optimizers = make_optimizers(from_dict({**settings, "learning_rate": 0.0}), model)
    parallel = shard.wrap(model, ranks, mesh)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    step(optimizers)
    return model, optimizers, parallel, mesh


def step(optimizers):
    for o in optimizers:
        o.step()
        o.zero_grad(set_to_none=True)


def memory():
    """What growing and saving take at most, against the grown state's share and its largest tensor."""
    torch.set_num_threads(1)
    ranks = run.parallel.ranks.Ranks("cpu")
    small = dict(block_size=64, vocab_size=8192, n_layer=6, n_embd=256, n_head=4, n_inner=1024)
    large = dict(n_layer=8, n_embd=512, n_head=8, n_inner=2048)
    make(ranks, {**small, "n_layer": 1})  # whatever the libraries take at first use
    base = rss("VmRSS")
    model, optimizers, parallel, mesh = make(ranks, small)
    peaks = []
    for job in (lambda: grow(model, optimizers, **large), lambda: shard.gather_to_cpu(
            [model.state_dict(), *(o.state_dict() for o in optimizers)], ranks.rank == 0)):
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # set the high-water mark down
        done = job()
        peaks.append(rss("VmHWM") - base)
        if isinstance(done[0], GPT):
            model = shard.wrap(done[0], ranks, mesh)
    assert isinstance(model.wte.weight, DTensor)
    print(json.dumps(dict(
        peaks=peaks, state=3 * 4 * model.num_params() / 2**20,
        largest=4 * max(p.numel() for p in model.parameters()) / 2**20)))
    ranks.close()


def stall():
    """How long a save in the background keeps training waiting, and what one takes in all."""
    torch.set_num_threads(1)
    ranks, found = run.parallel.ranks.Ranks("cpu"), {}
    sizes = dict(block_size=64, vocab_size=8192, n_layer=6, n_embd=512, n_head=8, n_inner=2048)
    with tempfile.TemporaryDirectory() as folder:
        out = [folder if ranks.rank == 0 else None]
        dist.broadcast_object_list(out, 0)
        for how in ("none", "fsdp"):
            model, optimizers, _, _ = make(ranks, sizes, how)
            saver = Saver(SimpleNamespace(out_dir=out[0], keep_checkpoints=1), ranks)
            waits, takes = [], []
            for it in range(4):
                state = dict(iter=it, model_config={}, model=model.state_dict(),
                             optimizers=[o.state_dict() for o in optimizers])
                ranks.barrier()
                started = time.perf_counter()
                saver.start(state, False)
                waits.append(time.perf_counter() - started)
                assert saver.settle() is None
                ranks.barrier()
                takes.append(time.perf_counter() - started)
            found[how] = dict(first=waits[0], wait=statistics.median(waits[1:]), params=model.num_params(),
                              all=statistics.median(takes[1:]))
            if ranks.rank == 0:  # as one process would write it
                state = checkpoint.load(out[0])
                started = time.perf_counter()
                checkpoint.commit(out[0], {**state, "iter": 9}, 1)
                found[how]["one_file"] = time.perf_counter() - started
            ranks.barrier()
        print(json.dumps(found))
        ranks.close()


def collectives():
    """How many collectives a step of Muon alone takes, by how it is shared out and by layers."""
    ranks, counts = run.parallel.ranks.Ranks("cpu"), {}
    for how in ("none", "fsdp"):
        for n_layer in (2, 5):
            _, optimizers, _, _ = made = make(
                ranks, dict(block_size=32, vocab_size=64, n_layer=n_layer, n_embd=16, n_head=1,
                            head_dim=16, n_inner=32), how, optimizer="muon")
            for p in made[0].parameters():
                p.grad = torch.zeros_like(p)
            seen = Counter()
            real = {name: getattr(dist, name) for name in dir(dist)
                    if name.startswith(("all_", "reduce", "broadcast", "gather", "scatter"))
                    and callable(getattr(dist, name))}
            for name, f in real.items():
                setattr(dist, name, counting(seen, name, f))
            optimizers[0].step()
            for name, f in real.items():
                setattr(dist, name, f)
            counts[f"{how}{n_layer}"] = seen
    print(json.dumps(counts))
    ranks.close()


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.entries = max([self.entries, *(t.untyped_storage().nbytes() // t.itemsize for t in tree_leaves(out)
                                            if torch.is_tensor(t) and not isinstance(t, DTensor))])
        return out


def muon_in_pieces():
    """
    Entries of the largest tensor in a step of Muon on 10 layers, and the weights' change from one step
    of all at once, for AT_ONCE = 4 matrices of 16 x 32.
    """
    ranks, found = run.parallel.ranks.Ranks("cpu"), {}
    for how in ("none", "fsdp"):
        weights = []
        for at_once in (4 * 512, 1 << 18):
            optim.AT_ONCE["cpu"] = at_once
            model, optimizers, _, _ = make(
                ranks, dict(block_size=32, vocab_size=64, n_layer=10, n_embd=16, n_head=1, head_dim=16,
                            n_inner=32), how, optimizer="muon")
            optimizers[0].param_groups[0]["lr"] = 0.1
            torch.manual_seed(1)
            for p in model.parameters():
                p.grad = torch.randn(p.shape)
                if isinstance(p, DTensor):
                    p.grad = distribute_tensor(p.grad, p.device_mesh, p.placements)
            with Largest() as largest:
                optimizers[0].step()
            found.setdefault(how, largest.entries)
            weights.append([shard.gather(p.detach()) for p in model.parameters()])
        found[how + "_off"] = max((a - b).abs().max().item() for a, b in zip(*weights))
    print(json.dumps(found))
    ranks.close()


def checking():
    """Which parts each rank checks when a run is loaded together, each more slowly than a collective waits."""
    ranks, seen, sha256 = run.parallel.ranks.Ranks("cpu"), [], sharded.sha256

    def slowly(path, size):
        seen.append(os.path.basename(path))
        time.sleep(2.5 * int(os.environ["NANOGROW_TIMEOUT"]) * ranks.rank)
        return sha256(path, size)
    sharded.sha256 = slowly
    shard.from_rank_0(ranks, lambda: checkpoint.load(os.environ["OUT"], values=False, ask=ranks.ask))
    print(json.dumps(seen))
    ranks.close()


def gathering():
    """In the middle of a ramp, in bfloat16: the loss, the gradient's norm, and what weights are gathered in."""
    ranks, found = run.parallel.ranks.Ranks("cpu"), {}
    for how in ("none", "fsdp"):
        model, optimizers, _, mesh = make(ranks, dict(block_size=32, vocab_size=64, n_layer=2, n_embd=32, n_head=2,
                                                      head_dim=16, n_inner=64), how)
        torch.manual_seed(1)
        model, _ = grow(model, optimizers, n_layer=3, n_embd=48, n_head=3, n_inner=96)
        set_mask(model, 0.3)
        parallel, block, seen = shard.wrap(model, ranks, mesh, torch.bfloat16), model.blocks[0], []
        block.mlp.register_forward_pre_hook(lambda *args, b=block, m=model, seen=seen: seen.extend(
            str(v.dtype) for v in (b.mlp.fc.weight, m.wte.weight, m.masks.c)))
        idx = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16):
            loss = parallel(idx=idx[:, :-1], targets=idx[:, 1:], return_logits=False)[1]
        loss.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters())
        found[how] = loss.item(), shard.gather(norm).item(), seen
    print(json.dumps(found))
    ranks.close()


def counting(seen, name, f):
    def counted(*args, **kwargs):
        seen[name] += 1
        return f(*args, **kwargs)
    return counted


def bad_steps():
    """
    A loss that is NaN on one rank is nobody's step. And float16's scaler, were there one on CPUs: an
    infinity in one rank's shard stops all.
    """
    config = from_dict({**TINY, "data_dir": os.environ["DATA"], "out_dir": os.environ["OUT"],
                        "optimizer": os.environ["OPTIMIZER"], "micro_batch": 2, "shard": "fsdp"})
    run = train.Run(config)
    rank, forward = run.ranks.rank, run.model.forward
    run.step(run.loader.batch(0))
    before = weights_and_state(run)
    run.model.forward = lambda **kw: (None, forward(**kw)[1] * (torch.nan if rank else 1))
    run.step(run.loader.batch(1))
    assert int(run.bad) == 1 and int(run.bad_run) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights_and_state(run)))
    scaler, o = torch.amp.GradScaler("cpu", init_scale=4.0), run.optimizers[-1]
    for p in run.model.parameters():
        p.grad = torch.ones_like(p)
    if rank:
        run.model.wte.weight.grad.to_local()[-1, -1] = torch.inf
    scaler.scale(torch.ones(()))  # it makes its tensors at first use
    scaler.unscale_(o)
    o.found_inf = None
    scaler.step(o)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert torch.equal(before[0], weights_and_state(run)[0])
    run.close()
    print(json.dumps("ok"))


def weights_and_state(run):
    whole = shard.gather_to_cpu(run.state_dict())
    leaves = tree_leaves([whole["model"], whole["optimizers"]])
    return [t.clone() for t in leaves if torch.is_tensor(t)]
