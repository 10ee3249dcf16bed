"""One host's kernel network: links, nftables, steering, what guests may send, whose socket it is.

May import: errors, wire, routing and what lies directly in host.
"""
