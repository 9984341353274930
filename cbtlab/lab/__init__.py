"""Scenarios in a throw-away virtual machine with a real kernel and the real module.

``packages`` fetches Debian's packages, ``kernels`` builds the module against a
kernel, ``initramfs`` makes the guest's root, ``guest`` boots it, ``scenarios``
runs a scenario of ``datasets/`` in it and packs the result into a case.
"""
