"""The declared tasks; importing this registers them."""

from benchmarks.tasks import arithmetic as arithmetic
from benchmarks.tasks import belief as belief
from benchmarks.tasks import cars as cars
from benchmarks.tasks import ioi as ioi
from benchmarks.tasks import methods as methods
from benchmarks.tasks import normals as normals
from benchmarks.tasks import numbers as numbers
from benchmarks.tasks import planted as planted
from benchmarks.tasks import rational as rational
from benchmarks.tasks import reading as reading
from benchmarks.tasks import rings as rings
from benchmarks.tasks import speed as speed
from benchmarks.tasks import walks as walks
