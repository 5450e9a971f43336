"""Conformance suites for plug-ins of your own: call one in a test, it asserts the contract."""

from __future__ import annotations

from autopeft.backbones.conformance import check_backbone
from autopeft.methods.conformance import check_method

__all__ = ["check_backbone", "check_method"]
