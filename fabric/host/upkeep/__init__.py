"""Comparing what is there with what should be, now and then, and mending the differences.

May import: errors and all of host but its top (main, assembly, api, views).
"""
