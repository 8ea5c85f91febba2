"""The same work on many items, spread by joblib over processes of this machine or over a dask cluster.

Workers keep what they make where all can read it (the cache); what they hand back is small. What they all need, a dataset for one, is sent
once to each worker of a cluster; between processes of one machine joblib maps its large arrays into memory.

On this machine SIGTERM and Ctrl-C end the workers first: each leaves the item that it has in hand by an exception, so that what is
half-written is removed, and then the run ends. A worker of a cluster finishes the item that it has in hand.
"""

from __future__ import annotations

from .failures import KEPT
from .kept import PATIENCE, Kept, Missing
from .work import check, is_spread, spread

__all__ = ["KEPT", "PATIENCE", "Kept", "Missing", "check", "is_spread", "spread"]
