"""lwkt: light weight kernel threads and everything they wait with.

Threads are pinned to logical CPUs, each CPU elects the next one itself, and threads talk through
message ports. Tokens, locks, sleeping, timers and IPI queues live here too, since each of them is a
rule about when a thread may run. A map, from the bottom up:

======================  =========================================================================
`thread`                the thread, `curthread`, switch, yield, critical sections
`token`                 serializing tokens
`globaldata`            what belongs to one CPU: run queue, doorbell, stop
`intr`                  interrupts, preemption, borrowed contexts (on top of `globaldata`)
`sched`                 election, the loop, the task driver: the class `Cpu` (on top of `intr`)
`ipiq`, `cpusync`       functions run on other CPUs; holding other CPUs still
`core`, `machine`       `Lwkt`: all CPUs and threads; running, adopting, shutting down
`migrate`               threads that change CPU; the thread calls of the paper's Table I
`block`                 how plain code says that it must wait
`spinlock`, `serialize`, `refcount`  short exclusion; drivers against their interrupts; references
`callout`, `sleepq`, `synch`         timers; sleep queues; tsleep and wakeup
`lockmgr`, `mtx`, `condvar`, `wait`  locks and conditions a thread may sleep on
`msgport`, `msgthread`, `msgkinds`   messages and ports; the thread port; the other five kinds
`msgapi`, `taskqueue`                the message calls of the paper's Table II; deferred work
======================  =========================================================================

Counterpart: kern/lwkt_*.c, kern/kern_synch.c, kern/kern_timeout.c and their relatives.
"""
