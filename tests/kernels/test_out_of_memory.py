"""Memory that runs out inside the native core raises MemoryError, and the core goes on.

tests/native/out_of_memory.cpp fails every single allocation of every op; here is what Python sees of it.
"""

from __future__ import annotations

import os
import subprocess
import sys

# The calls that layers make are recorded, then made again on their own: only the core allocates then. Each is made in a
# thread that has little scratch memory yet, with less room left than the call needs, then with enough.
CHILD = r"""
import resource, threading
import torch
from spfde._native import native
from spfde.kernels.norm_act import norm_act
from spfde.nn import SparseConv2d, SparseLinear

ROOM = 2**19
torch.set_num_threads(1)
core, calls = native(), []
ops = {name: op for name, op in vars(core).items() if name.startswith(("spmm", "sddmm", "conv2d", "norm_act"))}

def recorded(name):
    def run(*args):
        calls.append((name, args))
        return ops[name](*args)
    return run

for name in ops:
    setattr(core, name, recorded(name))

def layer(kind, dense, pattern):
    out, *rest = dense.weight.shape
    mask = (torch.rand(out // 4, *rest) < 0.2).repeat_interleave(4, 0)
    made = kind.from_dense(dense, mask, pattern=pattern)
    made.kernel = "native"
    return made

def differentiated(module, x, by_x=True, by_parameters=True):
    x.requires_grad_(by_x)
    module.requires_grad_(by_parameters)
    y = module(x)
    dy = torch.ones_like(y)
    alive.append((module, x, y, dy))
    inputs = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    results.extend((y.detach(), *torch.autograd.grad(y, inputs, dy, retain_graph=True)))

class Norm(torch.nn.BatchNorm1d):
    def forward(self, x):
        return norm_act(x, None, None, self.weight, self.bias, training=True)

class ConvNorm(torch.nn.BatchNorm2d):
    def __init__(self):
        super().__init__(64)
        self.conv = layer(SparseConv2d, torch.nn.Conv2d(64, 64, 3, padding=1), "unstructured")

    def forward(self, x):
        return self.conv.call_with_norm(x, None, None, self.weight, self.bias, training=True)

alive, results = [], []
for pattern in ("unstructured", "block:4x1"):
    differentiated(layer(SparseLinear, torch.nn.Linear(65536, 16), pattern), torch.randn(64, 65536))
    differentiated(layer(SparseLinear, torch.nn.Linear(16, 65536), pattern), torch.randn(64, 16))
    for by in ((True, True), (True, False), (False, True)):
        conv = layer(SparseConv2d, torch.nn.Conv2d(64, 64, 3, padding=1), pattern)
        differentiated(conv, torch.randn(16, 64, 48, 48), *by)
grouped = torch.nn.Conv2d(16, 16, 3, padding=1, groups=4)
differentiated(layer(SparseConv2d, grouped, "unstructured"), torch.randn(1, 16, 400, 400))
differentiated(ConvNorm(), torch.randn(16, 64, 48, 48))
differentiated(Norm(70000), torch.randn(2, 70000, 30, 1).to(memory_format=torch.channels_last))
wanted = [tensor.clone() for tensor in results]

def attempt(call):
    name, args = call
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, resource.RLIM_INFINITY))
    try:
        ops[name](*args)
        print(name, "had enough memory")
    except MemoryError:
        print(name, "raised")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ops[name](*args)

def in_thread(call):
    small = torch.zeros(8, dtype=torch.int32)
    # OpenMP's own memory for this thread, which it cannot do without.
    ops["spmm"](1, 1, 1, 1, *[small.data_ptr()] * 7, *[0] * 5, 1)
    attempt(call)

for call in calls:
    thread = threading.Thread(target=in_thread, args=(call,))
    thread.start()
    thread.join()
assert all(torch.equal(got, want) for got, want in zip(results, wanted, strict=True))
"""

OPS = {
    *("spmm", "spmm_blocks", "spmm_blocks_input_grad", "sddmm", "sddmm_blocks", "norm_act", "norm_act_grad"),
    *(
        "conv2d",
        "conv2d_input_grad",
        "conv2d_weight_grad",
        "conv2d_gradients",
        "conv2d_norm_act",
        "conv2d_norm_act_grad",
    ),
    *("conv2d_blocks", "conv2d_blocks_input_grad", "conv2d_blocks_weight_grad"),
}


def test_every_op_raises_memory_error_and_then_works():
    # The allocator holds nothing back: what is freed goes to the system, and the limit tells.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" raised")} == OPS
