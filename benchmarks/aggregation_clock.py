"""The clock of one contestant of `benchmarks.aggregation` and its end of the pipe; the standard library alone, for any environment.

    parent: {"do": "prepare", "tensors", "clients", "threads"}   child: {"ready", ...}
    parent: {"do": "trial", "name", "first"}                     child: {"wall", "processor", "extra"}

`extra` is the most memory that the process took during a run of its own beyond what it had before, in bytes; the first time alone, NaN else.
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

    def measure(self, work, first):
        """Run once; the first time once more for the memory, which later calls need not give back and find again."""
        wall, processor = self._seconds(work)
        extra = float("nan")
        if first:
            gc.collect()
            before = self._reset()
            result = work()
            extra = self._memory("VmHWM") - before
            del result
        return {"wall": wall, "processor": processor, "extra": extra}

    def _seconds(self, work):
        gc.collect()
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        del result
        return wall, processor

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
            say(clock.measure(trials[order["name"]], order["first"]))
