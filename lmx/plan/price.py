"""What an hour of a chip costs, by list price."""

# US dollars for a chip and an hour, on demand, without discounts. TPU:
# cloud.google.com/tpu/pricing, us regions. GPU: an eighth of what aws.amazon.com/ec2
# asks for p5.48xlarge and p5en.48xlarge. Edit them, or say `lmx plan --price`.
PRICES = {
    "v5e": 1.20,
    "v5p": 4.20,
    "v6e": 2.70,
    "h100": 6.88,
    "h200": 7.91,
    "cpu": 0.0,
}
