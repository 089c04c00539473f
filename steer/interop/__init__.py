"""Other libraries: the same plan inside TransformerLens and nnsight, and their files as our values.

No function here is part of `import steer`, and importing this package imports neither library.
"""

from steer.interop.transformer_lens import bridge_layout as bridge_layout
from steer.interop.transformer_lens import bridge_of as bridge_of
from steer.interop.transformer_lens import in_bridge as in_bridge
