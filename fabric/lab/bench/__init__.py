"""Measuring the fabric on real guests: ``fabric bench``.

bed            a line of hosts brought up for one measurement; processes and SSH in it

Forwarding:
traffic        programs on the hosts: paced UDP sender, TCP stream, counting receiver
measure        PURE  the search for the highest sustained rate, figures, ratios
kernel_path    reference 1: the kernels of the very same guests forward, no agent
guest_loop     reference 2: a bare receive/send loop, runs in a guest
guest_profile  the agent under a clock or profiler, runs in a guest
forward        the benchmark itself
report         results as tables

Spawning and memory:
opener         programs on the hosts: one opens connections, one answers
capture        what the kernel saw pass, and when
rounds         connections opened, watched, and ended again
samples        PURE  from events and captured packets to figures
raw_command    PURE  a guest's QEMU command line, made fit to be started by hand
raw_guest      reference: one QEMU started by hand, and the steps of its life
reference      reference: which steps stand for which tier, and where they happen
spawn, memory  the benchmarks themselves
spawn_tables   results as tables
May import: errors, wire, routing, host, lab.
"""
