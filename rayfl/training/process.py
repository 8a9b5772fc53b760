"""A process that trains: its settings, and the random generators that all of it shares."""

import ctypes
import os
import platform
import random

import numpy as np
import torch

from rayfl.training.precision import allow_tf32


def configure_process(threads: int) -> None:
    """Settings of a process that trains: deterministic kernels, and memory that is kept, not returned."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in any order
    # Streams that run beside each other; read when the GPU's context is made.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    allow_tf32(False, False)  # cuDNN rounds to TF32 unasked
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if torch.cuda.is_available():
        # Where PyTorch has a deterministic kernel beside a faster one; it warns where it has none.
        torch.use_deterministic_algorithms(True, warn_only=True)
        # The backward passes of the others add up in any order.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    if platform.libc_ver()[0] == "glibc":
        # By default glibc hands every large tensor back to the kernel and faults it in again at the
        # next step: 15 to 25 % of a small convnet's time, two thirds of FedWMSAM's on ResNet-18.
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 64 << 20)
        # Never mmap: the threshold for it has a limit of 32 MB, less than a vector of ResNet-18.
        libc.mallopt(mmap_max, 0)


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def server_threads(on_gpus: bool) -> int:
    """Threads of the server's arithmetic: a number that no result depends on only while it is fixed.

    Clients on CPUs need the processor themselves; those on GPUs wait for the server.
    """
    return 4 if on_gpus else 1


def generators() -> tuple[object, ...]:
    """The state of the process's generators: Python's, NumPy's and, last, torch's."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy = np.asarray(keys).tobytes(), rest
    return random.getstate(), numpy, torch.get_rng_state().numpy().tobytes()


def seed_layers(seed: int, device: torch.device) -> None:
    """Seed the global generator that layers draw from on this device, as dropout does."""
    if device.type == "cpu":
        # torch.manual_seed is for GPUs too: it formats a stack trace for their first use, 0.4 ms each time.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
