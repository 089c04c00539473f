"""A layout without standard sites: for BERT, T5, ViT, Mamba and whatever is not explained."""

from torch import nn

from steer.models.layout import Layout

RAW = "modules only"
"""The family name of a model wrapped with modules_only=True."""


def raw_layout(model: nn.Module) -> Layout:
    """Return a layout in which every standard site is refused and ModuleSite is all there is."""
    config = getattr(model, "config", None)
    name = getattr(config, "name_or_path", "") or type(model).__name__
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or 0
    return Layout(
        family=RAW,
        name=str(name),
        stack="",
        blocks="",
        n_layers=0,
        d_model=int(width),
        n_heads=0,
        n_kv_heads=0,
        d_head=0,
        d_mlp=None,
        d_vocab=0,
        taps={},
        absent={},
    )
