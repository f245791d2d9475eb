"""Prices of an hour of a chip, from a file that users can edit."""

from pathlib import Path

DEFAULT_PRICES = Path(__file__).with_name("prices.txt")


def load_price(kind: str, file: Path = DEFAULT_PRICES) -> float:
    """US dollars for an hour of a chip."""
    prices = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        match line.split("#")[0].split():
            case []:
                continue
            case [name, price] if price.replace(".", "", 1).isdigit():
                prices[name] = float(price)
            case _:
                raise ValueError(
                    f"{file}:{number}: {line!r} is not a price: a line is a chip and US"
                    " dollars for an hour of one, as in 'v5p 4.20'."
                )
    if kind not in prices:
        raise ValueError(f"{file} has no price of {kind}: add a line like '{kind} 1'.")
    return prices[kind]
