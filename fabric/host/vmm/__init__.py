"""What runs a guest: libvirt, the domain XML, the image, the acceleration, what QEMU leaves.

May import: errors, host.network and what lies directly in host.
"""
