"""Where the untyped spconv enters the package: import it from here, and its import and first use stay silent.

spconv 2.3.6 uses torch interfaces that newer torch calls deprecated (eight warnings at import), and its tensors carry
an fx metaclass whose first use logs a remark on tracing. Neither is for our user to act on; nothing else is silenced.
"""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.cuda\.amp\.custom_[fb]wd")
    import spconv.pytorch as spconv
    from spconv.core import ConvAlgo

logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)

__all__ = ["ConvAlgo", "spconv"]
