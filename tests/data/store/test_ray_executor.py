"""A cluster of one machine makes the bytes of this process."""

import json
from dataclasses import replace

import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.text import Text
from lmx.data.store.build import BuildTokenStore
from lmx.data.store.executor import ProcessPool
from lmx.data.store.ray_executor import RayExecutor
from lmx.data.tokenizer.base import ByteTokenizer


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # those of the cluster's own parts
def test_a_cluster_makes_the_bytes_of_one_process(write, tmp_path):
    rows = [json.dumps({"text": f"text {number} " * 20}) for number in range(300)]
    corpus = Text(path=write("a.jsonl", "\n".join(rows)))
    one = BuildTokenStore(
        sources={"a": corpus},
        tokenizer=ByteTokenizer(),
        shard_bytes=15_000,
        executor=ProcessPool(workers=1),
    )
    one.write(tmp_path / "one")
    replace(one, executor=RayExecutor()).write(tmp_path / "cluster")
    files = [path.name for path in (tmp_path / "one").iterdir()]
    assert len(files) >= 8
    for name in files:
        found = (tmp_path / "cluster" / name).read_bytes()
        assert found == (tmp_path / "one" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "cluster").iterdir()) == sorted(files)
    broken = Text(path=write("b.jsonl", b'{"text": "\xff"}\n'))
    wrong = replace(one, sources={"b": broken}, executor=RayExecutor())
    with pytest.raises(ConfigError, match=r"b\.jsonl: not UTF-8 at byte 10"):
        wrong.write(tmp_path / "broken")
