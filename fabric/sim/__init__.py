"""Whole networks in one process, in virtual time: the engines and tables are the real ones.

May import: errors, wire, routing. Randomness comes from one seeded generator, time from a queue of
events: the same question has the same answer, always.
"""
