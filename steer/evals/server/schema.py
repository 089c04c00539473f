"""What a request may say. Strict: a field that nothing here honours is refused, never ignored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictInt, StrictStr

from steer.evals.batching import Guard, Sampling

LONGEST = 200_000
"""Characters of a text."""
Name = Annotated[StrictStr, Field(min_length=1, max_length=200)]
Text = Annotated[StrictStr, Field(max_length=LONGEST)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=100)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=1 << 31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_Strict):
    """One turn of a chat: text only."""

    role: Literal["system", "user", "assistant"]
    content: Text


class GuardSaid(_Strict):
    """End the answer where a Monitor of the plan reads above a threshold."""

    line: Annotated[StrictInt, Field(ge=0, le=10_000)]
    above: FiniteFloat


class StreamOptions(_Strict):
    """Whether the last chunk counts tokens."""

    include_usage: StrictBool = False


class Generation(_Strict):
    """What chats and completions have in common.

    As in OpenAI's interface the temperature is 1 where nothing is said; 0 is greedy.
    """

    model: Name
    plan: Name | None = None
    digest: Annotated[StrictStr, Field(pattern=r"^([0-9a-f]{64}|base)$")] | None = None
    guards: Annotated[list[GuardSaid], Field(max_length=16)] = []
    max_tokens: Annotated[StrictInt, Field(ge=1, le=1 << 20)] | None = None
    temperature: Annotated[FiniteFloat, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: Annotated[StrictStr, Field(max_length=200)] | None = None
    """Whose request it is: changes nothing."""

    @property
    def sampling(self) -> Sampling:
        """How tokens are taken."""
        return Sampling(self.temperature, 0, self.top_p, self.seed)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(given)

    @property
    def watched(self) -> tuple[Guard, ...]:
        """The guards."""
        return tuple(Guard(one.line, one.above) for one in self.guards)


class Chat(Generation):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=1 << 20)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class Completion(Generation):
    """A request to /v1/completions: a text, or token ids."""

    prompt: (
        Annotated[StrictStr, Field(min_length=1, max_length=LONGEST)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=LONGEST)]
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
