"""What a campaign would take: its messages, workers and machines in virtual time.

The coordinator, the task queue, claims, leases, ledger and reconciler are the real ones. Simulated
are the clock, the broker and the store (in memory), the fleet engine, and what workers compute.

    settings    what is assumed of tasks, machines and messages: the section `simulation`
    observed    the same, from the ledger of a campaign that has run
    results     the results of commands, without engines
    agenda      virtual time
    bus, store  a lossy broker and a store in memory
    fleet       a fleet engine whose machines start late, run out and are reclaimed
    use         how much of the workers is used
    workers     workers that claim tasks, send heartbeats, finish, release and die
    simulation  puts all of it together and runs one campaign
    outcome     what came of it; `variants` compares it with other fleet files
"""
