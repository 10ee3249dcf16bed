"""Where hosts leave what the others are to know: one small interface, several implementations.

May import: errors, and what lies directly in host. It is never in the path of a packet: a store
that is lost freezes tables and loses nothing.
"""
