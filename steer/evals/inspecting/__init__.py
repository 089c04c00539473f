"""The provider for Inspect (inspect_ai): `steered/MODEL@DIGEST`.

`provider` is the model API, `engines` shares one model and one batcher among all plans, `chats`
renders messages and tools, `options` turns Inspect's settings into a row, `outputs` an answer into
Inspect's. Inspect finds it by the entry point `registry`; nothing of Inspect is imported before it
asks.
"""

from steer.evals.inspecting.engines import offer as offer
from steer.evals.inspecting.engines import withdraw as withdraw
