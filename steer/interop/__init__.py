"""Other libraries: the same plan inside TransformerLens and nnsight, and their files as our values.

No function here is part of `import steer`, and importing this package imports neither library.
"""

from steer.interop.cache import from_cache as from_cache
from steer.interop.nnsight import in_nnsight as in_nnsight
from steer.interop.transformer_lens import bridge_layout as bridge_layout
from steer.interop.transformer_lens import bridge_of as bridge_of
from steer.interop.transformer_lens import in_bridge as in_bridge
from steer.interop.vectors import from_caa as from_caa
from steer.interop.vectors import from_lm_eval as from_lm_eval
from steer.interop.vectors import from_repeng as from_repeng
