# SPDX-License-Identifier: GPL-2.0-only
"""The ioctl fuzzer: changes programs that reached new code until they reach more, or the judge complains.

The host makes the programs, in batches; a batch is what the seed and the corpus at its start make of it. The guest
carries them out (pyharness.guest.fuzz). So what led to a fault is known here, whatever becomes of the guest.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from random import Random
from typing import Any, Self

from pyharness.errors import CheckFailed, HarnessError
from pyharness.fuzz.corpus import covering
from pyharness.fuzz.program import Program, compiled, cost_of, mutate
from pyharness.fuzz.program import Step as S
from pyharness.fuzz.shrink import fewest, simplest
from pyharness.guest.fuzz import WrongResult
from pyharness.machine.config import BlobDevice
from pyharness.rig import INSTANCE, Rig
from pyharness.vsp.request import VspRequest

NULL = uuid.UUID("0c9d2a6e-2f3b-4f8e-9a53-6d5f5b1e0a02")
"""The device that QEMU answers for."""
DEVICES = (BlobDevice(INSTANCE), BlobDevice(NULL, backend=False))
"""What the guest must have."""

SEEDS: tuple[Program, ...] = (
    (S.of("ioctl"),),
    (S.of("ioctl", slot=1, data_len=64, data_valid=64),),
)
"""What is changed whatever the corpus has: requests that are right, one for each device."""

_BATCH = 256
# A verdict takes a tenth of a second, and what it is about does not go away.
_BATCHES_OF_A_VERDICT = 32
_NODE_TIMEOUT_S = 60.0
_ANSWER = b"an honest answer"


class HonestHost:
    """Answers each request at once, with a few bytes."""

    def handle(self, request: VspRequest) -> None:
        """Writes to the buffers that the host may write to."""
        answer = _ANSWER[: len(request.response)]
        request.response.write(answer)
        request.data.write(_ANSWER[: len(request.data)])
        request.complete(response_len=len(answer))


StartRig = Callable[[], AbstractContextManager[Rig]]
"""A fresh guest with `DEVICES`, of which an `HonestHost` serves the first."""


@dataclass
class Progressed:
    """What a fuzzer has done so far."""

    seconds: float = 0.0
    executions: int = 0
    """System calls ioctl."""
    answered: int = 0
    """Those that the host answered."""
    edges: int = 0
    corpus: int = 0

    @property
    def rate(self) -> float:
        """Executions per second."""
        return self.executions / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        share = 100 * self.answered / max(1, self.executions)
        return (
            f"{self.executions:,} ioctls in {self.seconds:.0f} s, {self.rate:.0f}/s, "
            f"{share:.0f} % answered by the host, {self.edges} edges, corpus {self.corpus}"
        )


class Found(Exception):
    """A program, or several, that the kernel or the judge complained of."""

    def __init__(self, error: HarnessError, programs: Sequence[Program]) -> None:
        """`programs` have run since all was known to be well."""
        super().__init__(str(error))
        self.error = error
        self.programs = tuple(programs)


class ContractBroken(CheckFailed):
    """An ioctl returned what it must not. The guest is fit all the same."""


@dataclass(frozen=True)
class Batch:
    """What a batch of programs did: ioctls made, those answered, and new edges by the program's index."""

    executions: int
    answered: int
    found: tuple[tuple[int, frozenset[int]], ...]


class Runner:
    """Programs in one guest. As a context manager it has the devices open inside the block."""

    def __init__(self, rig: Rig) -> None:
        """Waits for the devices."""
        self._rig = rig
        guest = rig.machine.guest
        guest.wait_for_node(f"{rig.node}1", _NODE_TIMEOUT_S)
        self._executor: Any = guest.module("pyharness.guest.fuzz").Executor((str(NULL), str(INSTANCE)))
        rig.judge.begin("the fuzzing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(HarnessError):  # a guest that died has said so already
            self._executor.close()

    def run(self, programs: Sequence[Program]) -> Batch:
        """Carry the programs out. Raises what the kernel says of it, and ContractBroken."""
        executions, answered, found = self._call(self._executor.run, programs)
        self._rig.judge.glance()
        return Batch(executions, answered, tuple((index, frozenset(edges)) for index, edges in found))

    def coverage(self, programs: Sequence[Program]) -> list[frozenset[int]]:
        """The edges of each program. Raises as `run`."""
        return [frozenset(edges) for edges in self._call(self._executor.coverage, programs)]

    def verdict(self) -> None:
        """Raise what is wrong with the guest."""
        self._rig.judge.verdict()
        self._rig.judge.begin("the fuzzing")

    def _call(self, method: Any, programs: Sequence[Program]) -> Any:
        try:
            return pickle.loads(method(pickle.dumps([compiled(program) for program in programs])))
        except WrongResult as error:
            raise ContractBroken(f"the ioctl broke its contract: {error}") from error


@dataclass
class Fuzzer:
    """A session in one guest."""

    runner: Runner
    corpus: list[Program]
    seed: int
    progressed: Progressed = field(default_factory=Progressed)
    _weights: list[float] = field(default_factory=list)
    new: list[Program] = field(default_factory=list)
    """What was added to the corpus."""
    _since_verdict: list[Program] = field(default_factory=list)

    def fuzz(self, enough: Callable[[Progressed], bool], tell: Callable[[Progressed], None] = lambda _: None) -> None:
        """Go on until there was `enough`; `tell` hears of each batch. Raises Found."""
        started = time.monotonic()
        rng = Random(self.seed)
        self.corpus = [*SEEDS, *(program for program in self.corpus if program not in SEEDS)]
        self._take(self.corpus, keep=False)
        reached = self._checked(partial(self.runner.coverage, self.corpus))
        self._weights = [_weight(*pair) for pair in zip(self.corpus, reached, strict=True)]
        for number in range(1, 1 << 62):
            pairs = (rng.choices(self.corpus, self._weights, k=2) for _ in range(_BATCH))
            self._take([mutate(rng, program, other) for program, other in pairs], keep=True)
            self.progressed.seconds = time.monotonic() - started
            tell(self.progressed)
            done = enough(self.progressed)
            if done or number % _BATCHES_OF_A_VERDICT == 0:
                self._checked(self.runner.verdict)
                self._since_verdict.clear()
            if done:
                return

    def _take(self, programs: list[Program], *, keep: bool) -> None:
        """Run them; with `keep` those are added to the corpus that reached new code."""
        self._since_verdict += programs
        batch = self._checked(partial(self.runner.run, programs))
        self.progressed.executions += batch.executions
        self.progressed.answered += batch.answered
        for index, edges in batch.found:
            self.progressed.edges += len(edges)
            if not keep:
                continue
            program = self._checked(partial(minimised, self.runner, programs[index], edges))
            if program not in self.corpus:
                self.corpus.append(program)
                self.new.append(program)
                self._weights.append(_weight(program, self._checked(partial(self.runner.coverage, [program]))[0]))
        self.progressed.corpus = len(self.corpus)

    def _checked(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except HarnessError as error:
            raise Found(error, self._since_verdict) from error


def _weight(program: Program, edges: frozenset[int]) -> float:
    """How often it is chosen: what gets far, more often; what takes long, so rarely that it takes little time."""
    return len(edges) / (cost_of(program) * sqrt(cost_of(program)))


def minimised(runner: Runner, program: Program, edges: frozenset[int]) -> Program:
    """The program without what it does not need to reach these edges."""

    def reaches(steps: Sequence[S]) -> bool:
        return edges <= runner.coverage([tuple(steps)])[0]

    return simplest(fewest(program, reaches), simpler, reaches)


def simpler(program: Program) -> Iterator[Program]:
    """The program with one argument simplified, for each that is not."""
    for index, step in enumerate(program):
        for other in step.simpler():
            yield (*program[:index], other, *program[index + 1 :])


def smaller_corpus(runner: Runner, corpus: Sequence[Program]) -> list[Program]:
    """Few programs that reach together what these do, beyond what `SEEDS` reach."""
    given = frozenset().union(*runner.coverage(SEEDS))
    return covering(dict(zip(corpus, runner.coverage(corpus), strict=True)), given)


# -- what was found


class Replayer:
    """Carries programs out in guests that are made anew whenever one has been spoilt."""

    def __init__(self, start: StartRig) -> None:
        self._start = start
        self._stack = ExitStack()
        self._runner: Runner | None = None

    def replay(self, programs: Sequence[Program]) -> None:
        """Carry out one by one. Raises Found with those up to the one that was complained of."""
        runner = self._fit()
        done: list[Program] = []
        try:
            for program in programs:
                done.append(program)
                runner.run([program])
            runner.verdict()
        except HarnessError as error:
            if not isinstance(error, ContractBroken):
                self.close()
            raise Found(error, done) from error

    def failure(self, programs: Sequence[Program]) -> Found | None:
        """What `replay` raises."""
        try:
            self.replay(programs)
        except Found as found:
            return found
        return None

    def close(self) -> None:
        """End the guest."""
        self._runner = None
        self._stack.close()

    def _fit(self) -> Runner:
        if self._runner is None:
            self._runner = self._stack.enter_context(Runner(self._stack.enter_context(self._start())))
        return self._runner


@contextmanager
def replaying(start: StartRig) -> Iterator[Replayer]:
    """A Replayer whose last guest ends with the block."""
    replayer = Replayer(start)
    try:
        yield replayer
    finally:
        replayer.close()


def reduced(replayer: Replayer, found: Found, tell: Callable[[str], None] = lambda _: None) -> Found | None:
    """The same complaint with as few and as simple programs as will do; None when it does not come again."""

    def again(programs: Sequence[Program]) -> bool:
        failure = replayer.failure(programs)
        same = failure is not None and _same(failure.error, found.error)
        tell(f"{len(programs)} programs of {sum(map(len, programs))} steps: {'fails' if same else 'passes'}")
        return same

    first = replayer.failure(found.programs)
    if first is None:
        return None
    found = first
    # A complaint that came at once is the last program's doing, most of the time.
    programs = found.programs[-1:] if again(found.programs[-1:]) else fewest(found.programs, again)
    if len(programs) == 1:
        steps = fewest(programs[0], lambda steps: again([tuple(steps)]))
        programs = (simplest(steps, simpler, lambda program: again([program])),)
    return replayer.failure(programs)


def _same(one: HarnessError, other: HarnessError) -> bool:
    return type(one) is type(other) and one.kind == other.kind
