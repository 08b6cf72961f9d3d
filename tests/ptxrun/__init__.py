"""Runs compiled PTX on a CPU, and checks it while it runs; see README.md."""

from .findings import Checks, Counters, Fault, PtxError
from .launch import SHARED_LIMITS, Function
from .module import Module, load

__all__ = ["SHARED_LIMITS", "Checks", "Counters", "Fault", "Function", "Module", "PtxError", "load"]
