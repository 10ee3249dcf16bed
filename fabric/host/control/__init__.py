"""The orchestrator: connections, what is decided about each, what agents say of them.

May import: errors, wire, routing, host.guest, host.vmm, host.network and what lies directly in
host.
"""
