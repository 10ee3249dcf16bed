"""Shell on the host: everything that touches the kernel, libvirt or a guest from outside.

Owns: application facts, intercept, steering, guest life cycle, provisioning, the journal, the
orchestrator and its local API. May import: errors, wire, routing. Never imports agent (the agent is
shipped as a file, not as a module).
"""
