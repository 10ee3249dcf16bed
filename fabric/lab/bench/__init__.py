"""Measuring the fabric on real guests: ``fabric bench``.

traffic        programs on the hosts: paced UDP sender, TCP stream, counting receiver
measure        PURE  the search for the highest sustained rate, figures, ratios
bed            a line of hosts brought up for one measurement; processes and SSH in it
kernel_path    reference 1: the kernels of the very same guests forward, no agent
guest_loop     reference 2: a bare receive/send loop, runs in a guest
guest_profile  the agent under a clock or profiler, runs in a guest
forward        the benchmark itself
report         results as tables
May import: errors, wire, routing, host, lab.
"""
