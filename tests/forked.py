"""What the drivers, which import torch once and fork for every job, do in the child."""
import os
import sys
import traceback


def to_the_end(work, log):
    """work(), with all that it says in the file `log`, and then the process ends as a script would."""
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    code = 0
    try:
        work()
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
