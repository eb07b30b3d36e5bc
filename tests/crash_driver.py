"""
Runs train.py's main() in a process that is shot at a chosen moment; started by test_faults.py.

    python crash_driver.py MOMENT ARGS...     MOMENT: a JSON object, one of
        {"seconds": 1.2}            SIGKILL after so long, wherever it is then
        {"iter": 17}                SIGKILL before the 17th iteration's optimizer step
        {"steps": 9}                SIGKILL before the ninth step of this process, of whatever run
        {"grown": 2}                SIGKILL between the second growth and the step after it
        {"bytes": 5000, "save": 3}  SIGKILL when the third checkpoint has so many bytes written
        {"replace": 4}              SIGKILL just before the fourth rename of a checkpoint
        {"full": 20000}             no more than so many bytes fit in any file (a full disk)
        {"memory": 8e9}             no more than so many bytes of address space

It reads many lines of such jobs on standard input and forks for each, so torch is imported once.
"""
import builtins
import json
import os
import signal
import sys
import threading
import time

from forked import to_the_end

import train
from base import disk


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment):
    if "seconds" in moment:
        threading.Timer(moment["seconds"], die).start()
    if "iter" in moment:
        update = train.Run.update

        def fatal(self, bad):
            return die() if self.iter == moment["iter"] else update(self, bad)
        train.Run.update = fatal
    if "steps" in moment:
        step, left = train.Run.step, [moment["steps"]]

        def last(self, batch):
            left[0] -= 1
            return step(self, batch) if left[0] else die()
        train.Run.step = last
    if "grown" in moment:
        move = train.Run.move_mask

        def after_growth(self):
            return die() if self.stage == moment["grown"] else move(self)
        train.Run.move_mask = after_growth
    if "replace" in moment:
        replace, count = os.replace, [0]

        def nth(*args):
            count[0] += 1
            return die() if count[0] == moment["replace"] else replace(*args)
        disk.os.replace = nth
    if "bytes" in moment:
        disk.open = cut_off(moment)
    if "memory" in moment:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (moment["memory"], moment["memory"]))
    if "full" in moment:
        import resource
        disk.PAUSES = (0, 0)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment["full"], moment["full"]))


def cut_off(moment):
    count = [0]

    def opener(path, mode="r", *args, **kwargs):
        f = builtins.open(path, mode, *args, **kwargs)
        if mode != "wb":
            return f
        count[0] += 1
        if count[0] == moment["save"]:
            write, written = f.write, [0]

            class Cut:
                def __getattr__(self, name):
                    return getattr(f, name)

                def write(self, data):
                    data = bytes(data)
                    room = moment["bytes"] - written[0]
                    written[0] += len(data)
                    if len(data) > room:
                        write(data[:room])
                        f.flush()
                        die()
                    return write(data)

                def __enter__(self):
                    return self

                def __exit__(self, *exc):
                    f.close()
            return Cut()
        return f
    return opener


def run(moment, args, env):
    os.environ.update(env)
    sys.argv = ["train.py", *args]
    arm(moment)
    train.main()


if __name__ == "__main__":
    for line in sys.stdin:
        job = json.loads(line)
        started = time.time()
        pid = os.fork()
        if pid == 0:
            to_the_end(lambda: run(job["moment"], job["args"], job["env"]), job["log"])  # noqa: B023
        _, status = os.waitpid(pid, 0)
        print(json.dumps(dict(code=os.waitstatus_to_exitcode(status),
                              seconds=time.time() - started)), flush=True)
