"""Processes that write to a store of head scores, and are killed or write at the same time.

Writers are forked by a process that has imported the package, so that starting one takes no time.
"""

import contextlib
import hashlib
import inspect
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import HeadScoreStore, StoreKey


def made_up(number):
    """Key and scores of a list, the same in every process."""
    numbers = np.random.default_rng(number)
    raw, null, filtered = numbers.standard_normal((3, 100, 256), dtype=np.float32)
    key = StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), ("11111111", "22222222"), 128, {"model": "m"})
    return key, ListScores(raw, null, filtered, None, {1: raw[0] + 1})


def write_lists(path, count, resume):
    """Write this many lists, existing ones only without resuming; report each list when it is written."""
    store = HeadScoreStore(path)
    for number in range(count):
        key, scores = made_up(number)
        if resume and store.get(key, 2, [1]) is not None:
            print("kept", number, flush=True)
        else:
            store.put(key, scores, 2)
            print("done", number, flush=True)
    print("all", flush=True)


SCRIPT = f"""
import hashlib, os, signal, sys
import numpy as np
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import HeadScoreStore, StoreKey

{inspect.getsource(made_up)}
{inspect.getsource(write_lists)}
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(600)  # should nobody kill it
        print("started", os.getpid(), flush=True)
        count, resume, path = line.strip().split(" ", 2)
        try:
            write_lists(path, int(count), resume == "resume")
            signal.pause()
        except BaseException as error:
            print("failed", repr(error), flush=True)
        finally:
            os._exit(1)
    print("ended", -os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


class Writer:
    """Runs processes that write lists, one after the other, and kills each at some moment."""

    def __init__(self):
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._pid = None

    def wait(self):
        """Until processes can be started."""
        assert self._hear() == ["ready"]

    def close(self):
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._nursery.communicate(timeout=60)

    def _hear(self):
        said = self._nursery.stdout.readline().split()
        assert said, "the process that forks is gone"
        if said[0] == "failed":
            self._pid = None
            self._nursery.stdout.readline()  # that it has ended
            pytest.fail(f"writing {' '.join(said)}")
        return said

    def start(self, path, count, how):
        self._nursery.stdin.write(f"{count} {how} {path}\n")
        self._nursery.stdin.flush()
        word, pid = self._hear()
        assert word == "started"
        self._pid = int(pid)

    def run_until(self, new=None, pause=0.0):
        """Kill it some seconds after it has reported this many new lists, or all lists.

        Returns the numbers of the lists that it has reported, new ones and those it found.
        """
        done, kept = set(), set()
        due = new == 0
        while True:
            if due and self._pid is not None:
                time.sleep(pause)
                os.kill(self._pid, signal.SIGKILL)
                self._pid = None
            said = self._hear()
            if said[0] == "ended":
                return done, kept
            if said[0] != "all":
                (done if said[0] == "done" else kept).add(int(said[1]))
            due = said[0] == "all" or len(done) == new


def put_states(path, worker):
    """Put a hidden state of the layer of the same number for each of 20 lists."""
    store = HeadScoreStore(path)
    for number in range(20):
        numbers = np.random.default_rng(number)
        raw, null, filtered = numbers.standard_normal((3, 2, 3 * 4), dtype=np.float32)
        state = {worker: np.full(3, 10 * number + worker, dtype=np.float32)}
        key = StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), ("1", "2", "3", "4"), 3, {"model": "m"})
        store.put(key, ListScores(raw, null, filtered, None, state), 4)


AT_ONCE = f"""
import hashlib, sys
import numpy as np
import safetensors.numpy
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import HeadScoreStore, StoreKey

{inspect.getsource(put_states)}
print("ready", flush=True)
sys.stdin.readline()
put_states(sys.argv[1], int(sys.argv[2]))
"""


def put_states_in_processes(path, count):
    """Run this many processes at once, each with its hidden states; see put_states."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, str(path), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for worker in range(count)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            worker.communicate(timeout=120)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
