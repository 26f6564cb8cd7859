"""An observer that stands for a process which is killed."""

from __future__ import annotations


class Killed(BaseException):
    """Stands for a process that is gone; nothing in the run may catch it."""


class Killer:
    """Ends the run after ``step`` optimizer steps."""

    def __init__(self, step):
        self.step = step

    def run_start(self, run):
        pass

    def step_end(self, run, step, report):
        if step == self.step:
            raise Killed

    def run_end(self, run, error):
        pass
