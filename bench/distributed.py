"""How far the cost model of mypt.distributed holds: bytes on the wire against the formula, time
against a measured bandwidth.

    torchrun --standalone --nproc_per_node 2 bench/distributed.py [OUT.json]

Bytes are what the kernel acknowledges on this process's own TCP sockets (gloo), so other traffic
does not count. Each step is run in turns with and without its communication.
"""

import json
import os
import platform
import socket
import statistics
import struct
import sys
import time
from contextlib import closing
from pathlib import Path
import torch
import torch.distributed as dist
from mypt.data.batches import collate
from mypt.model.config import ModelConfig, TrainConfig
from mypt.train.cost import step_bytes
from mypt.train.distributed import DDPTrainer, FSDPTrainer, join
from mypt.train.loop import train_step
from mypt.model.gpt import GPT

ACKED = 120  # offset of tcpi_bytes_acked in Linux's struct tcp_info
CFG, T, B = (ModelConfig(n_layer=4, n_head=4, n_embd=256, block_size=64, vocab_size=4096), 64, 2)
STEPS = 8


def sent() -> int:
    "Bytes that the sockets of this process have sent and the other end has acknowledged."
    total = 0
    for fd in os.listdir('/proc/self/fd'):
        try:
            if not os.readlink(f'/proc/self/fd/{fd}').startswith('socket:'):
                continue
            with closing(socket.socket(fileno=os.dup(int(fd)))) as s:
                if s.type == socket.SOCK_STREAM and s.family != socket.AF_UNIX:
                    total += struct.unpack_from(
                        'Q', s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), ACKED
                    )[0]
        except FileNotFoundError:
            continue  # the listing's own descriptor
    return total


def settled() -> int:
    dist.barrier()
    time.sleep(0.1)
    return sent()


class Row:
    def __init__(self, i):
        self.ids, self.weights, self.segments = (
            (torch.arange(T) * (i + 7) % 4096).numpy(),
            [1.0] * T,
            [1] * T,
        )


def timed(f) -> float:
    dist.barrier()
    start = time.perf_counter()
    f()
    dist.barrier()
    return time.perf_counter() - start


def scatter_bytes(n: int, world: int) -> int:
    """What gloo sends to sum n float32 numbers into shards: it sums them whole, twice what a ring
    (and NCCL) would.
    """
    x = torch.ones(n // world * world)
    before = settled()
    dist.reduce_scatter_tensor(torch.empty(n // world), x)
    return settled() - before


def measure(kind, micros: int) -> dict:
    torch.manual_seed(0)
    name = 'ddp' if kind is DDPTrainer else 'fsdp'
    t = kind(GPT(CFG), None, TrainConfig(learning_rate=1e-4, parallel=name), max_steps=1000)
    batches = [collate([Row(B * m + b) for b in range(B)], length=T) for m in range(micros)]
    for s in range(2):
        train_step(t, s, batches)
    before = settled()
    for _ in range(STEPS):
        train_step(t, s, batches)
    bytes_ = (settled() - before) / STEPS
    formula = step_bytes(CFG, t.world, name, micros, half=False)
    if name == 'fsdp':
        formula += micros * (
            scatter_bytes(CFG.n_params, t.world) - 4 * CFG.n_params * (t.world - 1) / t.world
        )
    return (
        dict(
            kind=name,
            micro_batches=micros,
            bytes=round(bytes_),
            formula=round(formula),
            ratio=round(bytes_ / formula, 4),
        ),
        t,
        batches,
    )


def ddp_time(t, batches) -> dict:
    "A step with and without its sum of gradients, in turns; and a bare sum of as many numbers."
    grads = torch.randn(sum(p.numel() for p in t.model.parameters()))
    with_, without, bare = [], [], []
    for _ in range(STEPS):
        with_.append(timed(lambda: t.backward(batches[0], 1.0, last=True)))
        without.append(timed(lambda: t.backward(batches[0], 1.0, last=False)))
        bare.append(timed(lambda: dist.all_reduce(grads)))
    with_, without, bare = map(statistics.median, (with_, without, bare))
    wire = step_bytes(CFG, t.world)
    return dict(
        bandwidth_MB_s=round(wire / bare / 1e6),
        predicted_ms=round(1e3 * bare, 1),
        measured_ms=round(1e3 * (with_ - without), 1),
        compute_ms=round(1e3 * without, 1),
        ratio=round((with_ - without) / bare, 2),
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    rank, world, _ = join(torch.device('cpu'))
    rows = []
    for kind, micros in ((DDPTrainer, 1), (DDPTrainer, 2), (FSDPTrainer, 1), (FSDPTrainer, 2)):
        row, t, batches = measure(kind, micros)
        rows.append(
            row | (dict(time=ddp_time(t, batches)) if (kind, micros) == (DDPTrainer, 1) else {})
        )
        if rank == 0:
            print(rows[-1], flush=True)
    if rank == 0 and len(sys.argv) > 1:
        out = Path(sys.argv[1])
        old = json.loads(out.read_text())['runs'] if out.exists() else {}
        machine = dict(
            cpu=platform.processor() or platform.machine(),
            cores=os.cpu_count(),
            torch=torch.__version__,
        )
        out.write_text(
            json.dumps(dict(machine=machine, runs=old | {str(world): rows}), indent=1) + '\n'
        )
