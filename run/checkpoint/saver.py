"""How a run saves: at once into one file, or in the background into parts written by all ranks."""
import contextlib
import os
from concurrent.futures import Future

from base.errors import UserError, first_line
from run.checkpoint import checkpoint, sharded
from run.parallel.shard import gather_to_cpu


class Saver:
    """
    Ranks that share out_dir write together in the background. A single process writes in the foreground,
    so that saving does not slow its timed training. If the others do not see rank 0's disk, rank 0 gathers
    everything and writes alone, also in the foreground.
    """

    def __init__(self, config, ranks):
        self.out_dir, self.keep, self.ranks = config.out_dir, config.keep_checkpoints, ranks
        self.together = ranks.several and ranks.see_alike(config.out_dir)
        self.copies, self.count = sharded.CPUStager(), 0
        self.saving = None
        self.tidy()  # left by a killed run

    def start(self, state, **kinds):
        """Start saving a run's state. Call on all ranks, after settle(). kinds: commit()'s best, numbered."""
        if self.together:
            self.count += 1
            name = f"{checkpoint.PARTS}{state['iter']:07d}_{self.ranks.start[:12]}_{self.count}"
            self.saving = sharded.save(
                state, os.path.join(self.out_dir, name), self.ranks, self.copies,
                lambda s: checkpoint.commit(self.out_dir, s, self.keep, **kinds))
            return
        state, self.saving, error = gather_to_cpu(state, self.ranks.rank == 0), Future(), None
        try:
            if self.ranks.rank == 0:
                checkpoint.commit(self.out_dir, state, self.keep, **kinds)
        except (OSError, RuntimeError) as e:  # torch reports a failed write as a RuntimeError
            error = e
        self.ranks.wait()
        if self.ranks.any(error is not None):
            self.saving.set_exception(error or UserError("rank 0 could not write the checkpoint"))
        else:
            self.saving.set_result(None)

    def tidy(self):
        """Delete parts folders that no checkpoint names."""
        if self.ranks.rank == 0:
            with contextlib.suppress(OSError):
                checkpoint.tidy_parts(self.out_dir)

    def done(self):
        """Has the current save finished, so that settle() returns at once?"""
        return self.saving is not None and self.saving.done()

    def settle(self):
        """Wait for the current save. Returns its UserError, or None."""
        error = self.saving and self.saving.exception()
        self.saving = None
        if error is None or isinstance(error, UserError):
            return error
        self.tidy()  # remove incomplete parts: the disk may be full
        failures = getattr(error, "failures", {})  # from DCP: rank -> (exception, trace)
        rank, why = next(((r, e) for r, (e, _) in failures.items()), (self.ranks.rank, error))
        return why if isinstance(why, UserError) else UserError(
            f"{self.out_dir}: cannot write the checkpoint (rank {rank}: {first_line(why)}): make room "
            "or change out_dir; the previous checkpoint is intact, --resume continues from it")
