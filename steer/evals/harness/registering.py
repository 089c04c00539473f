"""The name `steer` among lm-eval's models, where somebody asks for it."""

NAME = "steer"


def register() -> str:
    """Let lm-eval's `get_model("steer")` find this package's class, and return the name.

    lm-eval has no entry points, so a program that looks models up by name calls this first. Calling
    it again does nothing.
    """
    # lm-eval is in the extra `evals`.
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="steer.evals.harness.model:SteeredLM")
    return NAME
