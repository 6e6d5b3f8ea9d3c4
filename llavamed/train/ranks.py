"""Several processes as one run: FSDP2 under `torchrun`, and nothing at all in a process of its own.

    torchrun --nproc-per-node 8 -m llavamed train llava-med-v1.5 ...

`join()` reads torchrun's environment and gives `Ranks`, whose methods do nothing when there is one process, so
that the loop is written once. `shard()` spreads parameters, gradients and moments over the ranks, a decoder layer
at a time (PyTorch's `fully_shard`).

What is hard is what goes wrong. Collective operations wait for every rank: one that died, or that is stuck
on a bad disk, leaves the others waiting for half an hour and then failing with a time-out that names neither
the rank nor the reason. So every rank tells a `Watchdog` what it is about to do. A thread on each rank looks at what
the others told: the moment one has failed, or when one has done the same thing for too long, it says which rank, what
it was doing and why, and ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

_LOOK_EVERY = 1.0  # seconds between two looks of the watchdog at the other ranks
_BEAT_EVERY = 30.0  # seconds between two signs of life of a rank that works alone
_ALONE = 2 * 60 * 60.0  # seconds that it may: reading every record, writing a model to a slow disk


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    watchdog: Watchdog | None = None

    @property
    def first(self) -> bool:
        """True in the process that writes files and speaks to the person."""
        return self.rank == 0

    def doing(self, what: str) -> None:
        """Tell the watchdog; every call is a sign of life."""
        if self.watchdog is not None:
            self.watchdog.tell(what)

    @contextlib.contextmanager
    def alive(self, what: str) -> Iterator[None]:
        """Around this rank's own work of unknown length: a thread gives signs of life. Not for waiting for others."""
        if self.watchdog is None:
            yield
            return
        watchdog, over, until = self.watchdog, threading.Event(), time.monotonic() + _ALONE

        def beat() -> None:
            while not over.wait(_BEAT_EVERY) and time.monotonic() < until:
                watchdog.beat(what, alone=True)

        watchdog.beat(what, alone=True)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        watchdog.beat(f"through with {what}", alone=False)

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.world > 1:
            dist.barrier()

    def total(self, values: list[float]) -> list[float]:
        """The sum of each value over the ranks, the same numbers on every rank."""
        if self.world == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        result: list[float] = summed.tolist()
        return result

    def everyone(self, value: Any) -> list[Any]:
        """What each rank has, in the order of the ranks. `value` is anything that JSON can hold."""
        if self.world == 1:
            return [value]
        data = json.dumps(value).encode()
        size = torch.tensor([len(data)], device=self.device)
        sizes = [torch.zeros_like(size) for _ in range(self.world)]
        dist.all_gather(sizes, size)
        longest = int(torch.stack(sizes).max())
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = [torch.zeros_like(padded) for _ in range(self.world)]
        dist.all_gather(rows, padded)
        return [json.loads(bytes(row[: int(n)].tolist())) for row, n in zip(rows, sizes, strict=True)]

    def of_first(self, value: Any) -> Any:
        """What the first rank has; JSON's types only."""
        return self.everyone(value)[0]


@contextlib.contextmanager
def join(stuck_minutes: float = 10.0) -> Iterator[Ranks]:
    """All processes that torchrun started, or this one alone.

    Within the block the watchdog ends a run in which a rank has failed or has told nothing for `stuck_minutes`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    patience = timedelta(seconds=_ALONE, minutes=2 * stuck_minutes)  # the watchdog speaks first
    group = dist.PrefixStore("llavamed-group", store)  # type: ignore[attr-defined]
    # parameters meet on the GPU, the checkpoint's planning on the CPU
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=group, rank=rank, world_size=world, timeout=patience
    )
    watchdog = Watchdog(dist.PrefixStore("llavamed-watchdog", store.clone()), rank, world, 60 * stuck_minutes)  # type: ignore[attr-defined]
    try:
        with watchdog:
            yield Ranks(rank, world, device, watchdog)
    finally:
        dist.destroy_process_group()


class Watchdog:
    """Knows what every rank is doing, and ends this process when one of them cannot go on.

    Each rank keeps one key in the store that torchrun's ranks met by: what it does, and whether it failed.

    Who is waited for: a rank that works alone, as the others stand in a collective operation; else the one that has
    come to fewer deeds than the others. So work alone counts as no deed.
    """

    def __init__(self, store: Any, rank: int, world: int, patience: float) -> None:
        self._store, self._rank, self._world, self._patience = store, rank, world, patience
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llavamed-watchdog", daemon=True)
        self._deeds = self._beats = 0

    def __enter__(self) -> Watchdog:
        self.tell("starting")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        self._over.set()
        stopped = kind is None or (issubclass(kind, SystemExit) and getattr(error, "code", 0) in (0, None))
        what = "done" if stopped else f"{getattr(kind, '__name__', kind)}: {error}"
        with contextlib.suppress(RuntimeError):  # the store's host may be gone already
            self._put(what[:2000], failed=not stopped)

    def tell(self, what: str) -> None:
        """This rank comes to its next deed."""
        self._deeds += 1
        self._put(what)

    def beat(self, what: str, alone: bool) -> None:
        """This rank lives."""
        self._put(what, alone=alone)

    def _put(self, what: str, failed: bool = False, alone: bool = False) -> None:
        with self._lock:
            self._beats += 1
            body = {"beats": self._beats, "deeds": self._deeds, "alone": alone, "what": what, "failed": failed}
            self._store.set(str(self._rank), json.dumps(body))

    def _watch(self) -> None:
        since: dict[int, tuple[int, float]] = {}  # rank -> its beats, and when that number was first seen
        while not self._over.wait(_LOOK_EVERY):
            try:
                told = self._everyone()
            except RuntimeError as error:
                self._end(f"the rank that holds the store cannot be reached ({str(error).splitlines()[0]})")
                return
            now = time.monotonic()
            for rank, body in told.items():
                if body["failed"] and rank != self._rank:
                    self._end(f"rank {rank} failed: {body['what']}")
                    return
                if since.get(rank, (-1, 0.0))[0] != body["beats"]:
                    since[rank] = (body["beats"], now)
            if told and all(now - seen > self._patience for _, seen in since.values()):
                behind = min(told, key=lambda rank: (not told[rank]["alone"], told[rank]["deeds"]))
                minutes = (now - since[behind][1]) / 60
                self._end(f"rank {behind} has been {told[behind]['what']} for {minutes:.1f} minutes; the others wait")
                return

    def _everyone(self) -> dict[int, dict[str, Any]]:
        with self._lock:
            keys = [str(rank) for rank in range(self._world)]
            return {int(key): json.loads(self._store.get(key)) for key in keys if self._store.check([key])}

    def _end(self, why: str) -> None:
        print(f"rank {self._rank} stops: {why}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        os._exit(1)  # the main thread hangs in a collective operation and hears nothing


def shard(root: torch.nn.Module, layers: list[torch.nn.Module], ranks: Ranks, half: bool) -> None:
    """Spread `root` over the ranks: each of `layers` by itself, the rest as one group; what trains is widened.

    With `half` products are taken in bfloat16; gradients are added over the ranks in float32 either way.
    """
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world,))  # type: ignore[attr-defined]
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast does it; here it would round the weights of a batch too
    )
    for module in (*layers, root):
        widen(module)  # one at a time: a whole model in float32 may be more than a rank can hold
        fully_shard(module, mesh=mesh, mp_policy=policy)


def widen(module: torch.nn.Module) -> None:
    """Keep what trains in float32: small steps vanish in a bfloat16 weight."""
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.float()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one process would hold it; every rank has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
