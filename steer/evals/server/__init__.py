"""The server: OpenAI's chat and completions, each answer under a plan registered by its name.

`plans` holds what may be asked for, `schema` what a request may say, `app` answers, `commands` is
`steer serve`. FastAPI and uvicorn are in the extra `serve`; nothing of them is imported before
`app` is.
"""

from steer.evals.server.plans import Plans as Plans
from steer.evals.server.plans import Settings as Settings
from steer.evals.server.plans import read_plans as read_plans
