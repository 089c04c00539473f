"""Words and sizes for the tiny models, whose tokenizer has few words of one token."""

from benchmarks.belief.data import Design, SentimentItems

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TINY = SentimentItems(
    ("January", "February", "March", "April", "May", "June", "July", "August", *DAYS[:4]),
    ("September", "October", "November", "December"),
    ("cat", "day", "month"),
    ("good", "great"),
    ("bad", "terrible"),
)
SMALL = Design(few=(0, 1, 2, 4), many=(8, 12), groups=4, width=3)
