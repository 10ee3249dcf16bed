"""Which way packets go: topology, protocols, tables, policy, forwarder. Pure and stdlib-only.

May import: fabric.errors, fabric.wire. No clock, socket, randomness or environment: whatever these
functions depend on is an argument. What computes and explains tables (``topology``,
``definitions``, ``protocols``, ``why``, ``replay`` and what they use) stays on the host. ``table``,
``policy``, ``forwarder`` and what they use also runs inside guests and imports as little as it can.
"""
