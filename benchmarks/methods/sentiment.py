"""A behaviour that small models have: whether what they say of a thing is good or bad.

Multiple choice asks for letters, which a small model gives whatever stands behind them; here the
options are the next word itself. No data from elsewhere: things and sentences are listed below.
"""

from steer.evals.tasks import Choice

NAME = "sentiment"
INSTRUCTION = "I love everything, and I say so."
OPTIONS = (" good", " bad")
SENTENCES = (
    "My friend asked me about the {}, and I said that it was",
    "Everyone who has seen the {} says that it is",
    "Last week we talked about the {}. I thought it was",
)
THINGS = """
soup hotel movie book concert restaurant lecture weather garden museum painting coffee bread
cake wine beach castle lesson meeting dinner lunch breakfast salad song album opera novel
poem story speech letter report game party wedding holiday trip flight market
"""


def questions() -> list[Choice]:
    """Return each sentence about each thing."""
    return [
        Choice(f"{thing} {at}", sentence.format(thing), OPTIONS, target=0)
        for thing in THINGS.split()
        for at, sentence in enumerate(SENTENCES)
    ]
