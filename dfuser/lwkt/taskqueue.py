"""Task queues: work handed to a thread that may sleep.

A `Task` is a function with a context; enqueueing it makes a queue's thread call ``func(context,
pending)`` soon. Enqueueing it again before it runs only raises its pending count, so a task that
is enqueued by every interrupt costs one call. A task function may be plain or ``async``;
interrupts and callouts, which must not sleep, hand their slow half to a task.

Tasks of higher priority go first, equal ones in order. There is one queue with a thread per CPU
(`TaskQueues.thread`), shared by everybody, and the software interrupt queues ``swi`` and
``swi_mp``, whose tasks run on an interrupt thread and must be plain functions.

Counterpart: sys/kern/subr_taskqueue.c, sys/sys/taskqueue.h (struct taskqueue, struct task, struct
timeout_task).
Differs from DragonFly: with several threads each remembers its own running task, so cancel and
drain are right for all of them (there only the last one started is known); freeing a queue runs
what is left on the queue's threads.
Token and lock order: takes none; tasks are called with nothing held.
Invariants: a task is on at most one queue, at most once; ``pending`` is above 0 exactly while it
is; the queue is sorted by priority, then by arrival. A queue is bounded by the number of tasks
that exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs

from dfuser.libkern.errno import EBUSY, EINVAL, EPIPE, KKASSERT, KError
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.sysctl import Sysctl

from .callout import Callout
from .synch import tsleep, wakeup, wakeup_one
from .thread import TDPRI, Thread

if TYPE_CHECKING:
    from .machine import Lwkt

#: What a task calls: (context, pending).
TaskFunc = Callable[[Any, int], Awaitable[None] | None]

TQ_FLAGS_ACTIVE: Final = 1 << 0
TQ_FLAGS_BLOCKED: Final = 1 << 1
TQ_FLAGS_PENDING: Final = 1 << 2


class Task:
    """A piece of work. Counterpart: struct task (sys/taskqueue.h).

    Args:
        func: called as ``func(context, pending)``; ``pending`` is how often it was enqueued.
        context: for the function.
        priority: 0 to 255; the highest goes first.
    """

    __slots__ = ("context", "func", "pending", "priority", "queue")

    def __init__(self, func: TaskFunc, context: Any = None, priority: int = 0) -> None:
        self.func = func
        self.context = context
        self.priority = priority
        self.pending = 0
        self.queue: TaskQueue | None = None


class TimeoutTask(Task):
    """A task that can be enqueued some ticks from now. Counterpart: struct timeout_task."""

    __slots__ = ("armed", "callout")

    def __init__(self, func: TaskFunc, context: Any = None, priority: int = 0) -> None:
        super().__init__(func, context, priority)
        self.armed = False
        self.callout = Callout(self._timeout)

    def _timeout(self) -> None:
        """Counterpart: taskqueue_timeout_func."""
        queue = self.queue
        assert queue is not None
        KKASSERT(self.armed, "taskqueue: stray timeout")
        self.armed = False
        queue.callouts -= 1
        queue.enqueue_nofail(self)


@attrs.frozen
class TaskQueueStatistics:
    """What `TaskQueue.statistics` returns.

    Attributes:
        queued: tasks on the queue now.
        running: tasks being called now.
        threads: threads that serve it.
        callouts: timeout tasks that wait for their tick.
        enqueued: enqueue calls since it was made.
        coalesced: of these, calls that found the task pending.
        executed: task functions called.
        cancelled: pending tasks that were cancelled.
    """

    queued: int
    running: int
    threads: int
    callouts: int
    enqueued: int
    coalesced: int
    executed: int
    cancelled: int


class TaskQueue:
    """A queue of tasks and the threads that run them. Counterpart: struct taskqueue.

    Args:
        lwkt: the machine.
        name: for listings.
        enqueue: called when there is something to do; by default one of the queue's threads is
            woken.
    """

    __slots__ = (
        "callouts",
        "cancelled",
        "coalesced",
        "enqueue_fn",
        "enqueued",
        "executed",
        "flags",
        "ktr",
        "lwkt",
        "name",
        "running",
        "tasks",
        "tcount",
        "threads",
    )

    ktr_run = KtrInfo("taskqueue", "run", "%s pending %d")

    def __init__(self, lwkt: Lwkt, name: str, enqueue: Callable[[], None] | None = None) -> None:
        self.lwkt = lwkt
        self.name = name
        self.enqueue_fn = enqueue
        self.ktr = lwkt.ktr.master("taskqueue")
        self.flags = TQ_FLAGS_ACTIVE
        self.tasks: list[Task] = []
        self.running: list[Task] = []
        self.threads: list[Thread] = []
        self.tcount = 0
        self.callouts = 0
        self.enqueued = 0
        self.coalesced = 0
        self.executed = 0
        self.cancelled = 0

    # --- enqueueing ------------------------------------------------------------------------

    def enqueue(self, task: Task) -> int:
        """Have ``task`` called. Never suspends; interrupts may do it.

        Returns:
            0, or EPIPE when the queue is being freed.  Counterpart: taskqueue_enqueue.
        """
        if not self.flags & TQ_FLAGS_ACTIVE:
            return EPIPE
        self.enqueued += 1
        if task.pending:
            KKASSERT(task.queue is self, "taskqueue: the task is pending on another queue")
            task.pending += 1
            self.coalesced += 1
            return 0
        task.queue = self
        task.pending = 1
        tasks = self.tasks
        if not tasks or tasks[-1].priority >= task.priority:
            tasks.append(task)
        else:
            at = next(i for i, other in enumerate(tasks) if other.priority < task.priority)
            tasks.insert(at, task)
        if self.flags & TQ_FLAGS_BLOCKED:
            self.flags |= TQ_FLAGS_PENDING
        else:
            self._start()
        return 0

    def enqueue_nofail(self, task: Task) -> None:
        """`enqueue` for callers that cannot do anything about EPIPE."""
        self.enqueue(task)

    def enqueue_optq(self, task: Task) -> TaskQueue:
        """Enqueue here, unless the task is pending elsewhere already; says where it is.

        Counterpart: taskqueue_enqueue_optq.
        """
        queue = task.queue if task.pending and task.queue is not None else self
        queue.enqueue(task)
        return queue

    def enqueue_timeout(self, task: TimeoutTask, ticks: int) -> int:
        """Enqueue ``task`` in ``ticks`` ticks, at once for 0; a timeout that runs is set anew.

        Returns:
            How often it was pending before, a running timeout included.
            Counterpart: taskqueue_enqueue_timeout.
        """
        KKASSERT(task.queue is None or task.queue is self, "taskqueue: migrated queue")
        task.queue = self
        before = task.pending
        if ticks == 0:
            self.enqueue(task)
        else:
            if task.armed:
                before += 1
            else:
                self.callouts += 1
                task.armed = True
            task.callout.reset(ticks)
        return before

    def _start(self) -> None:
        if self.enqueue_fn is not None:
            self.enqueue_fn()
        else:
            wakeup_one(self)

    def block(self) -> None:
        """Stop starting tasks; those that run go on. Counterpart: taskqueue_block."""
        self.flags |= TQ_FLAGS_BLOCKED

    def unblock(self) -> None:
        """Start tasks again. Counterpart: taskqueue_unblock."""
        self.flags &= ~TQ_FLAGS_BLOCKED
        if self.flags & TQ_FLAGS_PENDING:
            self.flags &= ~TQ_FLAGS_PENDING
            self._start()

    # --- taking back -----------------------------------------------------------------------

    def cancel(self, task: Task) -> tuple[int, int]:
        """Take ``task`` off the queue. Never suspends.

        Returns:
            (0 or EBUSY, pending): EBUSY when it is being called right now; how often it had been
            enqueued.  Counterpart: taskqueue_cancel.
        """
        pending = task.pending
        if pending:
            self.tasks.remove(task)
            task.pending = 0
            self.cancelled += 1
            wakeup(task)
        return (EBUSY if task in self.running else 0), pending

    def cancel_timeout(self, task: TimeoutTask) -> tuple[int, int]:
        """`cancel`, and stop its timeout, which counts as pending. Counterpart: same name."""
        stopped = int(task.callout.stop())
        error, pending = self.cancel(task)
        if task.armed:
            task.armed = False
            self.callouts -= 1
        return error, pending + stopped

    async def drain(self, task: Task) -> None:
        """Wait until ``task`` is neither pending nor being called. Counterpart: taskqueue_drain."""
        while task.pending or task in self.running:
            await tsleep(task, 0, "tqdrain")

    async def drain_timeout(self, task: TimeoutTask) -> None:
        """Stop its timeout, then `drain`. Counterpart: taskqueue_drain_timeout."""
        await task.callout.cancel()
        if task.armed:
            task.armed = False
            self.callouts -= 1
        await self.drain(task)

    async def free(self) -> None:
        """Run what is left, end the threads, refuse new tasks. Counterpart: taskqueue_free."""
        self.flags &= ~(TQ_FLAGS_ACTIVE | TQ_FLAGS_BLOCKED)
        while self.tcount:
            wakeup(self)
            await tsleep(self.threads, 0, "tqterm")
        while self.tasks:
            await self._run_one()

    # --- running ---------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether there is a task to call and the queue is not blocked."""
        return bool(self.tasks) and not self.flags & TQ_FLAGS_BLOCKED

    async def _run_one(self) -> None:
        """Call the first task."""
        task = self.tasks.pop(0)
        pending = task.pending
        task.pending = 0
        self.running.append(task)
        self.executed += 1
        if self.ktr.mask:
            self.ktr.log(self.ktr_run, self.name, pending)
        try:
            waits = task.func(task.context, pending)
            if waits is not None:
                await waits
        finally:
            self.running.remove(task)
            wakeup(task)

    def run(self) -> None:
        """Call all tasks now, in the caller's context; for software interrupts.

        Panics when a task function is ``async``. Counterpart: taskqueue_run.
        """
        while self.ready():
            step = self._run_one()
            try:
                step.send(None)
            except StopIteration:
                continue
            step.close()
            KKASSERT(False, f"taskqueue {self.name}: a task suspended in a software interrupt")

    async def _thread_loop(self) -> None:
        """Counterpart: taskqueue_thread_loop."""
        while True:
            if self.ready():
                await self._run_one()
            elif self.flags & TQ_FLAGS_ACTIVE:
                await tsleep(self, 0, "tqthr")
            else:
                break
        self.tcount -= 1
        wakeup(self.threads)

    def start_threads(
        self, count: int, pri: int = TDPRI.KERN_DAEMON, cpu: int = -1, name: str = ""
    ) -> None:
        """Start ``count`` threads that serve the queue.

        Args:
            count: 1 or more.
            pri: their priority.
            cpu: where; -1 spreads several over all CPUs and puts a single one on the caller's.
            name: their name, with ``_0``, ``_1`` ... if there are several.

        Raises:
            KError: EINVAL for a count below 1.  Counterpart: taskqueue_start_threads.
        """
        if count <= 0:
            raise KError(EINVAL)
        KKASSERT(0 < pri < TDPRI.MAX, "taskqueue_start_threads: priority")
        label = name or f"taskq_{self.name}"
        ncpus = len(self.lwkt.cpus)
        for i in range(count):
            home: int | None = cpu
            if cpu < 0:
                home = i % ncpus if count > 1 else None
            self.tcount += 1
            self.threads.append(
                self.lwkt.create(
                    self._thread_loop,
                    name=label if count == 1 else f"{label}_{i}",
                    pri=pri,
                    cpu=home,
                )
            )

    def statistics(self) -> TaskQueueStatistics:
        """What is on the queue now, and counters since it was made."""
        return TaskQueueStatistics(
            queued=len(self.tasks),
            running=len(self.running),
            threads=self.tcount,
            callouts=self.callouts,
            enqueued=self.enqueued,
            coalesced=self.coalesced,
            executed=self.executed,
            cancelled=self.cancelled,
        )


class TaskQueues:
    """The task queues of one machine: ``swi``, ``swi_mp``, one a CPU, and those made by drivers.

    Counterpart: taskqueue_queues, taskqueue_swi, taskqueue_thread[].
    """

    __slots__ = ("limit", "lwkt", "queues", "swi", "swi_mp", "thread", "_swi_thread")

    sysctl_count = Sysctl("kern.taskqueue.count", "task queues that exist", getter="__len__")
    sysctl_limit = Sysctl("kern.taskqueue.limit", "task queues allowed", attr="limit")
    sysctl_executed = Sysctl(
        "kern.taskqueue.executed", "tasks executed by all queues", getter="count_executed"
    )

    def __init__(self, lwkt: Lwkt, limit: int = 1024) -> None:
        self.lwkt = lwkt
        self.limit = limit
        self.queues: dict[str, TaskQueue] = {}
        self._swi_thread: Thread | None = None
        self.swi = self.create("swi", self._swi_enqueue)
        self.swi_mp = self.create("swi_mp", self._swi_enqueue)
        self.thread: tuple[TaskQueue, ...] = ()

    def start(self) -> None:
        """Create the software interrupt thread and the per-CPU queues' threads; once, at boot."""
        self._swi_thread = self.lwkt.create(
            self._swi_loop, name="swi_taskq", pri=TDPRI.SOFT_NORM, cpu=0, driver="coro"
        )
        queues = []
        for cpu in self.lwkt.cpus:
            queue = self.create(f"thread_{cpu.cpuid}")
            queue.start_threads(1, cpu=cpu.cpuid, name=f"taskq_cpu {cpu.cpuid}")
            queues.append(queue)
        self.thread = tuple(queues)

    def create(self, name: str, enqueue: Callable[[], None] | None = None) -> TaskQueue:
        """Make a queue. Raises KError EINVAL for a name in use, EBUSY over the limit.

        Counterpart: taskqueue_create.
        """
        if name in self.queues:
            raise KError(EINVAL, f"task queue {name} exists")
        if len(self.queues) >= self.limit:
            raise KError(EBUSY, "too many task queues")
        queue = self.queues[name] = TaskQueue(self.lwkt, name, enqueue)
        return queue

    async def free(self, queue: TaskQueue) -> None:
        """End a queue and forget it. Counterpart: taskqueue_free."""
        await queue.free()
        del self.queues[queue.name]

    def find(self, name: str) -> TaskQueue | None:
        """The queue called ``name``. Counterpart: taskqueue_find."""
        return self.queues.get(name)

    def _swi_enqueue(self) -> None:
        wakeup_one(self)

    async def _swi_loop(self) -> None:
        """The software interrupt: run both queues, wait for more.

        Nothing can be enqueued between the end of a run and the sleep that follows it.
        """
        while True:
            while self.swi.ready() or self.swi_mp.ready():
                self.swi.run()
                self.swi_mp.run()
            await tsleep(self, 0, "swi")

    def count_executed(self) -> int:
        """Tasks executed by the queues that exist."""
        return sum(queue.executed for queue in self.queues.values())

    def __len__(self) -> int:
        return len(self.queues)

    def __iter__(self) -> Iterator[TaskQueue]:
        return iter(list(self.queues.values()))
