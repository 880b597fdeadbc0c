"""Cores work on experts and tensors, not inside operations.

An operation of torch on several threads ends at a barrier. Here there are thousands, most of them short; on a machine
whose cores have other work too, each waits there for a time slice. Where torch would take n threads (`--threads`,
`torch.set_num_threads`; by default the cores that this process may use), n workers take an expert or a tensor each.
Results do not depend on n.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_SMALL = 10**7  # parameters

_own = threading.local()  # the pool that a thread hands work to; workers have none, and so never wait for one


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Within, torch takes one thread for an operation, and `each` as many workers as torch took threads before."""
    threads = torch.get_num_threads()
    if threads == 1:  # here, or in a worker
        yield
        return
    # A thread has a gradient mode of its own.
    pool = ThreadPoolExecutor(threads, "hf_moe_lmc", torch.set_grad_enabled, (torch.is_grad_enabled(),))
    torch.set_num_threads(1)
    _own.pool = pool
    try:
        yield
    finally:
        _own.pool = None
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def threads_for(parameters: int) -> AbstractContextManager[None]:
    """`one_thread_per_operation` for a model of few parameters, whose operations are short."""
    return one_thread_per_operation() if parameters < _SMALL else nullcontext()


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`[function(item) for item in items]`, by the workers of `one_thread_per_operation` where there are any.

    The error of the first item that has one is raised.
    """
    pool = getattr(_own, "pool", None)
    return list(pool.map(function, items) if pool else map(function, items))
