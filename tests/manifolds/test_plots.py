import subprocess
import sys
from pathlib import Path

import pytest
import torch

import manifolds
from manifolds import ManifoldError


def _ring() -> manifolds.Curve:
    angle = torch.arange(7) * 2 * torch.pi / 7
    x = torch.stack([3 * angle.cos(), 3 * angle.sin(), 0 * angle, 0.3 * (2 * angle).cos()], 1)
    return manifolds.fit_curve(x, range(7), period=7)


def test_importing_manifolds_imports_nothing_heavy_and_no_model() -> None:
    code = (
        "import sys, manifolds; heavy = {'plotly', 'matplotlib', 'sklearn', 'pandas', "
        "'transformers', 'steer', 'probes'}; print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"


def test_the_interactive_picture_shows_the_ring_its_classes_and_every_path() -> None:
    ring = _ring()
    paths = {
        "manifold path": ring.decode(ring.path(1, 4, 5)),
        "chord": ring.chord(1, 4).decode(torch.linspace(0, 1, 5)),
    }
    names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    figure = manifolds.plot_curve(ring, labels=names, paths=paths)
    traces = figure.to_dict()["data"]
    curve, classes, path, chord = traces
    assert [trace["name"] for trace in traces] == ["manifold", "classes", *paths]
    assert list(classes["text"]) == names
    coordinates = ring.subspace.coordinates(ring.decode(ring.knots))
    drawn = torch.tensor([classes["x"], classes["y"], classes["z"]]).T
    assert torch.allclose(drawn, coordinates[:, :3], rtol=0, atol=1e-6)
    # The ring closes, and both paths have the same ends.
    assert curve["x"][0] == pytest.approx(curve["x"][-1], abs=1e-5)
    assert path["x"][0] == pytest.approx(chord["x"][0], abs=1e-5)
    assert path["y"][-1] == pytest.approx(chord["y"][-1], abs=1e-5)


def test_the_still_picture_is_written_as_a_file(tmp_path: Path) -> None:
    ring = _ring()
    figure = manifolds.draw_curve(ring, paths={"chord": ring.decode(ring.path(0, 3, 4))})
    figure.savefig(tmp_path / "ring.png")
    assert (tmp_path / "ring.png").read_bytes().startswith(b"\x89PNG")
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("PC 1", "PC 2")
    assert (right.get_xlabel(), right.get_ylabel()) == ("PC 1", "PC 3")
    assert [text.get_text() for text in left.texts] == list("0123456")


def test_a_curve_in_a_plane_is_drawn_flat() -> None:
    angle = torch.arange(5) * 2 * torch.pi / 5
    ring = manifolds.fit_curve(torch.stack([angle.cos(), angle.sin()], 1), range(5), period=5)
    classes = manifolds.plot_curve(ring).to_dict()["data"][1]
    assert list(classes["z"]) == [0] * 5


def test_labels_that_are_not_as_many_as_points_are_refused() -> None:
    with pytest.raises(ManifoldError, match=r"2 labels for 7 points.*one label a point"):
        manifolds.plot_curve(_ring(), labels=["a", "b"])
    with pytest.raises(ManifoldError, match=r"7 labels for 3 points"):
        manifolds.draw_curve(_ring(), centroids=torch.zeros(3, 4))


def _bumps(n: int) -> torch.Tensor:
    gap = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    return (-torch.minimum(gap, n - gap).double()).softmax(1)


def test_the_two_manifolds_stand_side_by_side_with_each_path_in_both() -> None:
    ring, behavior = _ring(), manifolds.fit_behavior(_bumps(7), range(7), period=7, other=False)
    points = ring.decode(ring.path(1, 4, 5))
    outputs = behavior.decode(behavior.path(1, 4, 5)).float()
    figure = manifolds.plot_two_manifolds(ring, behavior, paths={"way": (points, outputs)})
    traces = figure.to_dict()["data"]
    left = [trace for trace in traces if trace["scene"] == "scene"]
    right = [trace for trace in traces if trace["scene"] == "scene2"]
    assert [trace["name"] for trace in left] == ["manifold", "classes", "way"]
    assert [trace["name"] for trace in right] == ["manifold", "classes", "way"]
    # A path along M_y runs through its own classes: both ends are knots 1 and 4.
    way, classes = right[2], right[1]
    assert way["x"][0] == pytest.approx(classes["x"][1], abs=1e-4)
    assert way["y"][-1] == pytest.approx(classes["y"][4], abs=1e-4)
    with pytest.raises(ManifoldError, match="do not correspond"):
        manifolds.plot_two_manifolds(ring, manifolds.fit_behavior(_bumps(6), range(6), period=6))
    with pytest.raises(ManifoldError, match="one label a knot"):
        manifolds.plot_two_manifolds(ring, behavior, labels=["a"])


def test_a_surface_is_drawn_by_its_coordinate_lines_through_the_knots() -> None:
    u = torch.cartesian_prod(torch.arange(6.0), torch.arange(3.0))
    angle = u[:, 0] * 2 * torch.pi / 6
    x = torch.stack([angle.cos(), angle.sin(), u[:, 1]], 1)
    tube = manifolds.fit_surface(x, u, periods=(6, None))
    figure = manifolds.plot_surface(tube, paths={"way": tube.decode(tube.path(u[0], u[8], 5))})
    traces = figure.to_dict()["data"]
    lines = [trace for trace in traces if trace["name"] == "manifold"]
    assert len(lines) == 6 + 3
    ring = torch.tensor([lines[0][axis] for axis in "xyz"]).T
    assert torch.allclose(ring[0], ring[-1], atol=1e-5)  # round the periodic axis it closes
    knots = tube.subspace.coordinates(tube.decode(u))
    apart = torch.cdist(knots, torch.cat([torch.tensor([t[a] for a in "xyz"]).T for t in lines]))
    assert apart.amin(1).max() < 0.05
    with pytest.raises(ManifoldError, match="one label a knot"):
        manifolds.plot_surface(tube, labels=["a"])
