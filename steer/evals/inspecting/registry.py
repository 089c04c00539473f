"""What Inspect's entry point imports: the name, and the class only when it is asked for."""

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="steered")
def steered() -> type[ModelAPI]:
    """Return the model API of `steered/MODEL@DIGEST`."""
    from steer.evals.inspecting.provider import SteeredAPI  # imports torch and transformers

    return SteeredAPI
