"""`mlxd.heap`: what is freed goes back to the system."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Runs in the place of the daemon, behind `main`.
_PROGRAM = """
import ctypes, json, os, sys, threading
from mlxd import daemon

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = libc.fclose.argtypes = [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]

def rss_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def take(n_bytes):
    place = libc.malloc(n_bytes)
    ctypes.memset(place, 1, n_bytes)
    return place

def count_arenas():
    file = libc.fopen(b"arenas.xml", b"w")
    libc.malloc_info(0, file)
    libc.fclose(file)
    with open("arenas.xml") as arenas:
        return arenas.read().count("<heap nr")

def take_and_wait(begun, ended):
    libc.free(take(200_000))
    begun.wait()
    ended.wait()

async def run(options, lock):
    libc.free(take(16_000_000))  # a large body: from here on glibc's own thresholds are higher

    before_bytes = rss_bytes()
    large, small = take(16_000_000), take(100_000)  # the small one may lie behind the large one, and stays
    libc.free(large)
    kept_of_large_bytes = rss_bytes() - before_bytes

    before_bytes = rss_bytes()
    places = [take(64_000) for _ in range(400)]
    while places:
        libc.free(places.pop())
    kept_of_many_bytes = rss_bytes() - before_bytes

    begun, ended = threading.Barrier(9), threading.Barrier(9)
    for _ in range(8):
        threading.Thread(target=take_and_wait, args=(begun, ended)).start()
    begun.wait()
    print(json.dumps([kept_of_large_bytes, kept_of_many_bytes, count_arenas()]))
    ended.wait()
    return 0

daemon._run = run
sys.exit(daemon.main([]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_a_daemon_keeps_little_of_what_is_freed(tmp_path: Path) -> None:
    """After a first large body a daemon still gives back other large buffers and many small ones; threads share."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "MLXD_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kept_of_large_bytes, kept_of_many_bytes, arenas = json.loads(done.stdout)
    assert kept_of_large_bytes < 2_000_000
    assert kept_of_many_bytes < 6_000_000
    assert arenas == 2
