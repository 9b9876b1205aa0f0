"""What tests of several processes share: a port to meet at, and a way to leave the group."""

import gc
import socket

import torch.distributed as dist


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def leave_group() -> None:
    """Leave the process group once all ranks are done with it, and end its threads.

    A rank that leaves while others still talk to it makes gloo abort. So may a process that ends while its threads of
    gloo still run, and they run until nothing refers to the group, garbage included: the traceback of a caught error
    holds its frames and all that these hold.
    """
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()
