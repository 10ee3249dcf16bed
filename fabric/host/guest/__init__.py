"""The life of one host's guests, from a free slot to proven absence, and the ways they appear.

May import: errors, wire, host.network, host.vmm and what lies directly in host.
"""
