"""Frozen timm models as stem -> blocks -> head. The only room that imports timm.

``facts`` and ``catalog`` are torch-free; import the others by their module:
``weights.load_backbone``, ``network.Network``, ``describe.network_of``,
``conformance.check_backbone``.
"""
