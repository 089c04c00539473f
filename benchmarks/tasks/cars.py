"""A world model: the same geometry in a network that watches a car instead of reading text."""

from benchmarks.cars import measure
from benchmarks.task import Late, Task, task


@task(
    paper="arXiv:2605.05115",
    cost="no model needed (--model tiny-llama): minutes on two cores, trains three networks",
)
def world_model() -> Task:
    """Mountain-car drives seen as pictures; position and velocity steered through ModuleSite."""
    return Task(
        "Do ways along the surface of position and velocity stay where the car could be?",
        measure.measure_cars,
        measure.CONTROLS,
        Late("benchmarks.cars.draw:draw_cars"),
    )
