"""
What CUDA would refuse, found without CUDA. A make-believe device: tensors that a run puts on "cuda:0"
stay on the CPU, but their storage is marked, they say they are on cuda:0, and what is computed from
them is marked too. Two things are errors: tensors of several devices in one operation, and the
host reading a value from the device, which would make it wait.

(Fake tensors of device "cuda" would do without values, but have no backward in a PyTorch that was
built without CUDA.)
"""
import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from runs import TINY, events, make_data
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import train
from base.errors import UserError
from run import monitor, runlog
from run.evaluation import evaluate
from run.parallel import ranks
from run.precision import known_peak
from run.settings import from_dict

DEVICE = torch.device("cuda:0")
aten = torch.ops.aten
COPIES = {aten.copy_, aten._foreach_copy_}  # from one device to another on purpose
READS = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.unique_dim,
         aten._unique2}  # their result, or its shape, must be known to the host
# where a 0-D tensor on the CPU will do beside one on the GPU: a number, in point-wise arithmetic
POINTWISE = {getattr(aten, n + i) for n in (
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge",
    "bitwise_and", "bitwise_or", "logical_and", "logical_or", "where") for i in ("", "_")
    if hasattr(aten, n + i)}
INDICES = {aten.index, aten.index_put, aten.index_put_}  # may be on the CPU


def tensors(tree):
    return [t for t in tree_iter(tree) if isinstance(t, torch.Tensor)]


class Strict(TorchDispatchMode):
    """Passes the marks on from operation to operation, and refuses what CUDA would refuse."""

    def __init__(self):
        super().__init__()
        self.marked = {}  # address of a storage -> the storage, kept so that none comes again there
        self.reading = self.moving = False  # may the host read? is a tensor being moved?
        self.inside = False  # in an operation of the device, which makes tensors of its own there?

    def mark(self, tree):
        for t in tensors(tree):
            storage = t.untyped_storage()
            self.marked[storage._cdata] = storage
        return tree

    def on_gpu(self, t):
        return t.untyped_storage()._cdata in self.marked

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        found = tensors((args, kwargs))
        gpu = [t for t in found if self.on_gpu(t)]
        if gpu and not self.moving and func.namespace == "aten":
            rest = [t for t in found if not self.on_gpu(t)]
            numbers = op in POINTWISE and all(t.dim() == 0 for t in rest) and \
                (op is not aten.where or self.on_gpu(args[0]))
            indices = op in INDICES and self.on_gpu(args[0])
            if rest and op not in COPIES and not numbers and not indices:
                raise AssertionError(f"{func}: tensors of several devices")
            if op in READS and not self.reading:
                raise AssertionError(f"{func}: the host reads from the device")
        out = func(*args, **kwargs)
        # what is written into stays where it is
        into_cpu = func._schema.is_mutable and isinstance(args[0], torch.Tensor) and not self.on_gpu(args[0])
        if self.inside or gpu and not self.moving and not into_cpu:
            self.mark(out)
        return out

    @contextlib.contextmanager
    def flag(self, name):
        before = getattr(self, name)
        setattr(self, name, True)
        try:
            yield
        finally:
            setattr(self, name, before)

    def may_read(self):
        return self.flag("reading")


def is_cuda(x):
    return isinstance(x, (str, torch.device)) and str(x).startswith("cuda")


class MakeBelieve(TorchFunctionMode):
    """Answers for the device: where tensors are, how they get there, what is made there."""

    def __init__(self, strict):
        super().__init__()
        self.strict = strict

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, strict = kwargs or {}, self.strict
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        if func in (torch.Tensor.tolist, torch.Tensor.numpy) and strict.on_gpu(args[0]) \
                and not strict.reading:
            raise AssertionError(f"{func}: the host reads from the device")
        if func in (torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__):
            here = strict.on_gpu(args[0])
            if func is torch.Tensor.is_cuda.__get__:
                return here
            return DEVICE if here else func(*args)
        wanted = [x for x in tree_iter((args, kwargs)) if isinstance(x, (str, torch.device))
                  and (isinstance(x, torch.device) or is_cuda(x) or x in ("cpu", "meta"))]
        args, kwargs = tree_map(lambda x: torch.device("cpu") if is_cuda(x) else x, (args, kwargs))
        if func is torch.Tensor.cpu or func is torch.Tensor.to and wanted:
            there = func is torch.Tensor.to and is_cuda(wanted[0])
            if strict.on_gpu(args[0]) == there:
                return func(*args, **kwargs) if func is torch.Tensor.to else args[0]
            with strict.flag("moving"):
                moved = func(*args, **kwargs).clone()
            if not there and not strict.reading and not strict.moving:
                raise AssertionError(f"{func}: the host reads from the device")
            return strict.mark(moved) if there else moved
        attention = func is torch.nn.functional.scaled_dot_product_attention
        with strict.flag("inside") if attention and strict.on_gpu(args[0]) else contextlib.nullcontext():
            out = func(*args, **kwargs)
        return strict.mark(out) if any(map(is_cuda, wanted)) else out


@pytest.fixture
def strict(monkeypatch):
    """The make-believe device is there for the time of a test."""
    for name, value in dict(is_available=True, is_bf16_supported=True, device_count=1,
                            set_device=None, get_device_name="a GPU",
                            is_current_stream_capturing=False).items():
        monkeypatch.setattr(torch.cuda, name, lambda *a, _value=value, **kw: _value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *a: self)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self, *a: True)
    autocast, grouped = torch.autocast, torch._C._group_tensors_by_device_and_dtype
    monkeypatch.setattr(torch, "autocast", lambda device, *a, **kw: autocast("cpu", *a, **kw))
    strict = Strict()

    def group(lists, indices=False):  # in C++, which knows where the tensors really are
        assert len({strict.on_gpu(t) for t in tensors(lists[0])}) < 2, "tensors of several devices"
        here = strict.on_gpu(lists[0][0])
        return {(DEVICE if here else d, k): v for (d, k), v in grouped(lists, indices).items()}
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", group)
    with MakeBelieve(strict), strict:
        yield strict


@pytest.mark.parametrize("wrong", [
    lambda a: torch.stack([a.sum(), torch.tensor(1.0)]),
    lambda a: torch.cat([a, torch.ones(1)]),
    lambda a: a + torch.ones(3),
    lambda a: torch.lerp(a, a, torch.tensor(0.5)),
    lambda a: torch._foreach_mul_([a], torch.tensor(2.0)),
    lambda a: a.sum().item(),
    lambda a: bool(a.sum() > 0),
    lambda a: a.tolist(),
    lambda a: torch.nonzero(a)])
def test_what_cuda_refuses(wrong, strict):
    a = torch.ones(3, device=DEVICE)
    assert a.is_cuda and (a * torch.tensor(2.0))[torch.tensor([0, 1])].device == DEVICE
    with strict.may_read():
        assert torch.stack([a.sum().cpu(), torch.tensor(1.0)]).device.type == "cpu"
    with pytest.raises(Exception, match="(?i)device|host"):
        wrong(a)


# -----------------------------------------------------------------------------
# a run, in the order in which train.py goes

def steps(run, strict, n):
    """n iterations as train.py has them, without what watches them."""
    for _ in range(n):
        if run.growth_is_due():
            run.grow()
        run.move_mask()
        run.step(run.loader.batch(run.iter))


EVERY_RUN = [*itertools.product((("gpt", False), ("bert", False), ("llama", False), ("llama", True)),
                                ("adamw", "muon"), ("bfloat16", "float16"))]
FIRST = EVERY_RUN[::3]  # each model, optimizer and format, and documents kept apart


@pytest.mark.parametrize("device, threads", [("cuda", 1), ("cpu", 2)])
def test_a_process_with_a_gpu_takes_one_cpu_thread(device, threads, monkeypatch):
    monkeypatch.setattr(ranks, "open_device", lambda name: torch.device(device))
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ranks.Ranks(device)
        assert torch.get_num_threads() == threads and chosen == [torch.device(device)] * (device == "cuda")
    finally:
        torch.set_num_threads(before)


def test_one_device_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--device=cuda:1: is one device, and there are 2 processes: use --device=cuda,"):
        ranks.Ranks("cuda:1")


def test_peaks_are_known_by_whole_names(monkeypatch):
    for name, peak in (("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA RTX A1000 Laptop GPU", 0), ("NVIDIA T400 4GB", 0),
                       ("Tesla T4", 65e12), ("NVIDIA GH200 480GB", 989e12), ("NVIDIA GB200", 2250e12), ("Tesla V100S-PCIE-32GB", 125e12),
                        ("NVIDIA H100 PCIe", 756e12), ("NVIDIA GeForce RTX 4090", 165e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        assert known_peak(DEVICE) == peak, name


@pytest.mark.parametrize("model, optimizer, dtype", [
    pytest.param(*run, marks=[] if run in FIRST else pytest.mark.slow) for run in EVERY_RUN])
def test_a_run(model, optimizer, dtype, strict, tmp_path):
    model, doc_mask = model
    data = str(make_data(tmp_path / "data"))
    stages = [dict(at=2, n_inner=48, n_embd=32, n_head=2, ramp_iters=2),
              dict(at=5, n_layer=3, ramp_iters=2)]
    with strict.may_read():  # the data is looked at, and agreed on
        run = train.Run(from_dict({**TINY, "out_dir": str(tmp_path / "out"), "data_dir": data,
                                   "device": "cuda", "micro_batch": 4, "model": model, "max_iters": 9,
                                   "optimizer": optimizer, "dtype": dtype, "stages": stages,
                                   "doc_mask": doc_mask}))
        evaluate(run)
    steps(run, strict, 8)
    assert run.stage == 2 and run.model.masks.c is None and run.iter == 8
    with strict.may_read():
        evaluate(run)
        assert run.is_finite()
        state = run.state_dict()
    assert all(t.device == DEVICE for t in tensors((state["model"], state["optimizers"])))
    if model != "bert":
        run.model.generate(torch.zeros(1, 3, dtype=torch.long, device=DEVICE), 2, top_k=5)


def test_the_clock_waits_for_the_device(strict, monkeypatch, tmp_path):
    """Steps and growths count with what they do on the device, evaluations do not; no step is waited for."""
    now, busy, waits = [0.0], [0.0], set()  # the host's time; when the device is through

    def work(seconds, f):
        def worked(*args, **kwargs):
            busy[0] = max(now[0], busy[0]) + seconds
            return f(*args, **kwargs)
        return worked

    def wait():
        waits.add(run.iter)
        now[0] = max(now[0], busy[0])

    def evaluate(run, *args):
        work(7, wait)()  # its result is read
        return {"val_loss": 5.0}
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    for module in (monitor, runlog):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(monitor, "evaluate", evaluate)
    with strict.may_read():
        run = train.Run(from_dict({
            **TINY, "out_dir": str(tmp_path / "out"), "data_dir": str(make_data(tmp_path / "data")),
            "device": "cuda", "max_iters": 20, "eval_interval": 10, "log_interval": 100,
            "stages": [dict(at=15, n_inner=48, ramp_iters=2)]}))
        run.step, run.grow = work(3, run.step), work(50, run.grow)
        watch = monitor.Monitor(run, run.config)
        train.train(run, watch)
        watch.close()
        run.close()
    log = {e["event"]: e for e in events(tmp_path / "out")}
    assert log["grow"]["grow_s"] == 50 and log["grow"]["train_s"] == 15 * 3 + 50
    assert log["eval"]["train_s"] == 110
    assert waits <= {0, 10, 15, 20}
