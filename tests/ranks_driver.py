"""
Runs train.py's main(), or a function of tests/ranks_jobs.py, in several processes that train together;
started by test_distributed.py. It reads jobs on standard input, one JSON object a line, and forks for
each of a job's ranks, so that torch is imported once:

    {"world": 2, "log": PATH, "args": [...]}     train.main() with these arguments
    {"world": 2, "log": PATH, "call": NAME}      NAME() of ranks_jobs.py
    {..., "fault": {"rank": 1, "save": 2, ...}}  what goes wrong there: see ranks_jobs.fault()

and answers with a line: the exit code of every rank. Rank 0 writes to PATH, rank 1 to PATH.1 ...
"""
import json
import os
import socket
import sys
import time

import ranks_jobs
from forked import to_the_end

import train
from run.parallel.ranks import Ranks


def run(job, rank, port):
    os.environ.update(job.get("env", {}))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["world"]),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if job.get("fault", {}).get("rank") == rank:
        ranks_jobs.fault(**job["fault"])
    if job.get("blind"):
        Ranks.see = lambda self, path: False
    if "call" in job:
        getattr(ranks_jobs, job["call"])()
    else:
        sys.argv = ["train.py", *job["args"][rank]]
        train.main()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(pids, patience):
    """The exit codes; as torchrun does, the others are ended soon after one has failed."""
    codes, until = {}, time.time() + 600
    while len(codes) < len(pids) and time.time() < until:
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    until = min(until, time.time() + patience)
        time.sleep(0.01)
    for pid in set(pids) - codes.keys():
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return [codes.get(pid) for pid in pids]


if __name__ == "__main__":
    for line in sys.stdin:
        job, port, pids = json.loads(line), free_port(), []
        for rank in range(job["world"]):
            pid = os.fork()
            if pid == 0:
                log = job["log"] + (f".{rank}" if rank else "")
                to_the_end(lambda: run(job, rank, port), log)  # noqa: B023
            pids.append(pid)
        print(json.dumps(wait(pids, 20)), flush=True)
