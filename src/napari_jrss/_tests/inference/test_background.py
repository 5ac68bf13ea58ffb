"""Work behind a window leaves a core to it, and waits for it."""

from __future__ import annotations

import os
import sys
import threading

import torch

from napari_jrss.inference.device import leave_a_core
from napari_jrss.threads import available_cores


def test_only_the_thread_that_asks_steps_back() -> None:
    before = torch.get_num_threads()
    inside: list[int] = []

    def work() -> None:
        leave_a_core()
        inside.append(torch.get_num_threads())
        if sys.platform == "linux":
            inside.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside[0] == max(1, available_cores() - 1)
    assert torch.get_num_threads() == before
    if sys.platform == "linux":
        assert inside[1] == max(10, os.getpriority(os.PRIO_PROCESS, 0))
