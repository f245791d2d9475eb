"""A certificate as text."""

from collections.abc import Iterator, Mapping
from typing import Any

LABELS = {
    "losses": "losses of steps",
    "metrics": "logged values, evaluations among them",
    "batches": "batches fed",
    "ledger": "things due beside the training, and done",
    "state": "tensors of parameters and optimizer",
}
BOTH = ("batches", "ledger")  # of these, also on another mesh


def format_report(report: Mapping[str, Any]) -> str:
    """What was shown, in a page."""
    return "\n".join(_lines(report))


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    word = "holds" if told["holds"] else "DOES NOT HOLD"
    commit = (told["commit"] or "no commit")[:12] + "+" * bool(told["uncommitted"])
    yield f"{word}: {' '.join([told['page'], *told['words']])}"
    yield (
        f"  run {told['run_id']}, {told['steps']:,} steps, saved every"
        f" {told['save_every']:,}; {told['devices']}, lmx {commit}, jax"
        f" {told['versions']['jax']}, Python {told['python']}"
    )
    for found in told["same_mesh"]:
        kills = sum(bool(life["died"]) for life in found["lives"])
        yield f"killed {kills} times, same mesh"
        yield from map(_life, found["lives"])
        yield "  equal to the bit:"
        yield from (
            _equal(LABELS[name], found[name]) for name in LABELS if name in found
        )
        yield _replayed(found["replays"])
        yield _account(found["account"])
    if other := told["other_mesh"]:
        yield "killed, and gone on elsewhere"
        yield from (f"{_life(life)}; {life['place']}" for life in other["lives"])
        yield "  equal to the bit:"
        yield from (_equal(LABELS[name], other[name]) for name in BOTH if name in other)
        yield _near("losses of steps", other["losses"])
        if "evaluations" in other:
            yield _near("losses of evaluations", other["evaluations"])
        far = other["parameters"]
        yield (
            f"  parameters at the end are {far['all']:.1e} of their norm apart, at most"
            f" {far['most']:.1e} in one tensor, {far['tensor']}"
        )
    else:
        yield "nothing was shown of another mesh: there is no second device"
    for refused in told["refused"]:
        yield f"  refused: {refused.splitlines()[0]}"
    yield f"{told['seconds']:,.0f} s"


def _life(life: Mapping[str, Any]) -> str:
    """Where a life took up the run, and how it ended."""
    began = "not begun" if life["began"] is None else f"from step {life['began']}"
    end = f"killed {life['died']}" if life["died"] else "to the end"
    return f"    {began}, {end}"


def _equal(name: str, found: Mapping[str, Any]) -> str:
    if found["holds"]:
        return f"    {found['compared']:,} {name}"
    lines = [f"    NOT {name}: of {found['compared']:,}"]
    lines += [f"      {line}" for line in found["differ"]]
    lines += [f"      {key} is missing" for key in found["absent"]]
    return "\n".join(lines)


def _near(name: str, found: Mapping[str, Any]) -> str:
    """How near the losses are."""
    word = "within" if found["holds"] else "NOT within"
    absent = f"; missing: {', '.join(found['absent'])}" if found["absent"] else ""
    return (
        f"  {word} {found['tolerance']:g}, relative: {found['compared']:,} {name}, at"
        f" most {found['worst']:.1e} off, at {found['at']}{absent}"
    )


def _replayed(found: Mapping[str, Any]) -> str:
    """How much was done again."""
    each = found["each"]
    most = max((one["steps"] for one in each), default=0)
    over = [one for one in each if one["steps"] > one["most"]]
    return (
        f"  done again: {sum(one['steps'] for one in each):,} steps after"
        f" {len(each)} kills, at most {most}; allowed each time: a save's interval and"
        " the steps in flight of one" + (f"; EXCEEDED: {over}" if over else "")
    )


def _account(found: Mapping[str, Any]) -> str:
    """Where the time went."""
    seconds = sorted(found["seconds"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {n:.1f}" for name, n in seconds if n >= 0.05)
    total = sum(found["seconds"].values())
    return f"  account: {total:.1f} of {found['wall']:.1f} s: {shown}"
