"""Which way packets go: topology, protocols, tables, policy, forwarder. Pure and stdlib-only.

May import: fabric.errors, fabric.wire. No clock, socket, randomness or environment: whatever these
functions depend on is an argument. ``topology``, ``spf`` and ``protocols`` stay on the host; the
rest (``table``, ``policy``, ``forwarder`` and what they use) also runs inside guests and imports as
little as it can.
"""
