"""Shapes in activation and behaviour space: arrays in, frozen fits out; no model is known here.

A `Curve` is the line or ring on which activations lie, a `Surface` a sheet, cylinder or torus, a
`Sphere`, `Flat`, `Graph` or `Helix` what its name says; a `Behavior` or `BehaviorSurface` is the
same of output distributions. `recover`, `intrinsic_dimension` and `discover_groups` look for
structure where there are no labels.

>>> import math, torch
>>> angle = torch.arange(12) * 2 * math.pi / 12
>>> ring = fit_curve(torch.stack([angle.cos(), angle.sin()], 1), range(12), period=12)
>>> ring
Curve(12 knots, period 12, d_model 2, k 2, 100.0% of variance)
>>> [round(float(u), 2) for u in ring.path(11, 1, 5)]
[11.0, 11.5, 12.0, 12.5, 13.0]
"""

from manifolds.behavior.energy import Isometry as Isometry
from manifolds.behavior.energy import energy as energy
from manifolds.behavior.energy import isometry as isometry
from manifolds.behavior.manifold import Behavior as Behavior
from manifolds.behavior.manifold import fit_behavior as fit_behavior
from manifolds.behavior.sheet import BehaviorSurface as BehaviorSurface
from manifolds.behavior.sheet import fit_behavior_surface as fit_behavior_surface
from manifolds.behavior.simplex import bhattacharyya as bhattacharyya
from manifolds.behavior.simplex import exp_map as exp_map
from manifolds.behavior.simplex import fisher_rao as fisher_rao
from manifolds.behavior.simplex import hellinger as hellinger
from manifolds.behavior.simplex import log_map as log_map
from manifolds.components import choose_components as choose_components
from manifolds.curve import Curve as Curve
from manifolds.discovery.dimension import Dimension as Dimension
from manifolds.discovery.dimension import intrinsic_dimension as intrinsic_dimension
from manifolds.discovery.groups import Groups as Groups
from manifolds.discovery.groups import discover_groups as discover_groups
from manifolds.discovery.recover import Recovered as Recovered
from manifolds.discovery.recover import recover as recover
from manifolds.errors import ManifoldError as ManifoldError
from manifolds.fit import fit_curve as fit_curve
from manifolds.fit_surfaces import fit_surface as fit_surface
from manifolds.flat import Flat as Flat
from manifolds.flat import fit_flat as fit_flat
from manifolds.geodesics import Ambient as Ambient
from manifolds.geodesics import Density as Density
from manifolds.geodesics import Fisher as Fisher
from manifolds.geodesics import Geodesic as Geodesic
from manifolds.geodesics import geodesic as geodesic
from manifolds.geometry import curvature as curvature
from manifolds.geometry import gaussian_curvature as gaussian_curvature
from manifolds.geometry import metric_tensor as metric_tensor
from manifolds.geometry import normal as normal
from manifolds.geometry import split as split
from manifolds.graph import Graph as Graph
from manifolds.graph import fit_graph as fit_graph
from manifolds.graph import spectral_coordinates as spectral_coordinates
from manifolds.helix import Helix as Helix
from manifolds.helix import fit_helix as fit_helix
from manifolds.plots import draw_curve as draw_curve
from manifolds.plots import plot_curve as plot_curve
from manifolds.plots import plot_surface as plot_surface
from manifolds.plots import plot_two_manifolds as plot_two_manifolds
from manifolds.sphere import Sphere as Sphere
from manifolds.sphere import fit_sphere as fit_sphere
from manifolds.subspace import Subspace as Subspace
from manifolds.subspace import fit_pca as fit_pca
from manifolds.surface import Surface as Surface
