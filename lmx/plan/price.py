"""What an hour of a chip costs, by list price."""

# US dollars for a chip and an hour, on demand, in round figures that nobody has checked
# of late: see cloud.google.com/tpu/pricing, and what a GPU server costs where you rent
# it. Edit them, or say `lmx plan --price`.
PRICES = {
    "v5e": 1.20,
    "v5p": 4.20,
    "v6e": 2.70,
    "h100": 6.88,
    "h200": 7.91,
    "cpu": 0.0,
}
