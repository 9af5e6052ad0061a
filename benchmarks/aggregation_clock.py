"""The clock of one contestant of `benchmarks.aggregation` and its end of the pipe; the standard library alone, for any environment.

    parent: {"do": "prepare", "tensors", "clients", "threads"}   child: {"ready", ...}
    parent: {"do": "trial", "name"}                              child: {"wall", "processor", "extra"}

`extra` is the most memory that the process took during the trial beyond what it had before, in bytes.
"""

import ctypes
import gc
import json
import os
import re
import sys
import time


class Clock:
    """Wall seconds, processor seconds of all threads, and the peak of memory (Linux; NaN elsewhere)."""

    def measure(self, work):
        """Run once; the result is dropped after the clock has stopped."""
        gc.collect()
        before = self._reset()
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        extra = self._memory("VmHWM") - before
        del result
        return {"wall": wall, "processor": processor, "extra": extra}

    def _reset(self):
        """Forget the peak so far; returns what is resident."""
        if not sys.platform.startswith("linux"):
            return float("nan")
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return self._memory("VmRSS")

    def _memory(self, key):
        if not sys.platform.startswith("linux"):
            return float("nan")
        with open("/proc/self/status") as file:
            return int(re.search(rf"{key}:\s+(\d+) kB", file.read())[1]) * 1024


def serve(prepare, clock, orders):
    """Answer the parent's orders until it closes the pipe; what the contestants print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message):
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    trials = {}
    for line in orders:
        order = json.loads(line)
        if order["do"] == "prepare":
            trials, facts = prepare(order)
            say({"ready": True, **facts})
        else:
            say(clock.measure(trials[order["name"]]))
