"""Runs that begin with trained weights: which are taken, and which are refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lmx
from lmx.analysis.replay import RecordedRun, replay
from lmx.config.registry import ConfigError
from lmx.core.sharding import is_variable
from lmx.models.params import flatten_params
from lmx.run.run_dir import read_metrics
from lmx.train.checkpoint.import_hf import import_hf
from lmx.train.checkpoint.init_from import InitialState, read_init_from
from lmx.train.trainer import train_run
from tests.train import own_loss

assert own_loss.Distill  # which configs name

CONTINUE = """\
include "{tiny}"  # data, optimizer and schedule
include "{run}/experiment.gin"  # the model, in place of that one
Experiment.model = @Decoder
Experiment.init_from = @InitFrom()
InitFrom.path = "{run}"
InitFrom.take = "weights"
RepeatTask.sequence_length = 12
Constant.peak_lr = 0.001
Experiment.steps = 2
Mesh.data = 1
"""


@pytest.fixture(scope="module")
def trunk(tiny, tmp_path_factory):
    """A run of 6 steps at a constant rate, with checkpoints of steps 4 and 6."""
    config = tiny("Mesh.data=1", "Experiment.steps=6")
    return train_run("trunk", config, tmp_path_factory.mktemp("runs") / "trunk").path


@pytest.fixture
def begin(tiny):
    """The initial state of a variant of the tiny run, and what is recorded of it."""

    def begin(path, *words, take="weights", recorded=None):
        init = ["init_from=@InitFrom()", "hooks=[]"]
        from_ = [f"InitFrom.path={path}", f"InitFrom.take={take}"]
        config = tiny(*(f"Experiment.{x}" for x in init), *from_, *words)
        experiment = config.build()
        initial = InitialState(experiment.init_from, experiment.open(), recorded or {})
        return initial.load(), initial.facts["init_from"]

    return begin


def by_name(params):
    return {name: np.asarray(x) for name, x in flatten_params(params).items()}


def assert_equal(left, right):
    left, right = by_name(left), by_name(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], name)


@pytest.mark.faults
def test_a_branch_from_the_whole_state_is_the_rest_of_the_run(trunk, tiny, tmp_path):
    """And with a schedule that decays, the rate falls from the constant one to 0."""
    branch = [
        "Mesh.data=1",
        "Experiment.init_from=@InitFrom()",
        f"InitFrom.path={tmp_path / 'trunk'}",
        "InitFrom.take=state",
        "InitFrom.step=4",
        "Experiment.steps=6",
    ]
    trunk = shutil.copytree(trunk, tmp_path / "trunk")
    same = train_run("same", tiny(*branch), tmp_path / "same").path
    assert_equal(lmx.restore(same).params, lmx.restore(trunk).params)
    assert [row["step"] for row in read_metrics(same)] == [5, 6]
    assert not replay(RecordedRun.open(same), 6).differences
    decay = ["Experiment.schedule=@WSD()", "WSD.peak_lr=0.01", "Experiment.steps=8"]
    decay.append(f"WSD.decay_fraction={4 / 8}")
    decayed, alone = (
        train_run(name, tiny(*words, *decay), tmp_path / name).path
        for name, words in (("decayed", branch), ("alone", ["Mesh.data=1"]))
    )
    assert_equal(lmx.restore(decayed).params, lmx.restore(alone).params)
    rates = [row["learning_rate"] for row in read_metrics(decayed)]
    np.testing.assert_allclose(rates, [0.01, 0.0075, 0.005, 0.0025], rtol=1e-5)
    shutil.rmtree(trunk / "checkpoints" / "00000004")
    train_run("same", tiny(*branch), same)  # resumes without the weights
    with pytest.raises(ConfigError, match="no checkpoint of step 4: it has 6"):
        RecordedRun.open(same).restore_before(5)


@pytest.mark.faults
def test_a_run_with_frozen_parts_is_continued_and_a_source_of_all_its_weights(
    tiny, begin, tmp_path
):
    """The teacher is the model at the start of the first run."""
    frozen = ["Experiment.loss=@Distill()", "Experiment.data=@Tempered()"]
    frozen += ["Tempered.source=@RepeatTask()", "Mesh.data=1", "Experiment.steps=6"]
    frozen.append("Experiment.trainable=['*norm*', 'head*']")
    first = train_run("first", tiny(*frozen), tmp_path / "first").path
    source = ["Experiment.init_from=@InitFrom()", f"InitFrom.path={first}"]
    words = [*frozen, *source, "InitFrom.take=state", "InitFrom.step=4"]
    more = train_run("more", tiny(*words), tmp_path / "more").path
    rows = [
        {n: x for n, x in row.items() if "second" not in n}
        for path in (first, more)
        for row in read_metrics(path)
        if row["step"] > 4
    ]
    assert rows[:2] == rows[2:]
    wanted = lmx.restore(first).params
    assert_equal(lmx.restore(more).params, wanted)
    assert not replay(RecordedRun.open(more), 6).differences
    for path, mesh in ((first, ["Mesh.data=1"]), (more, ["Mesh.fsdp=2"])):
        state, facts = begin(path, *mesh)
        assert_equal(state.params, wanted)
        assert not any(facts[name] for name in ("new", "drop", "resize"))
    with pytest.raises(ConfigError, match="give Experiment.trainable as in"):
        words = [*frozen, "Experiment.steps=8", "Experiment.trainable=['head*']"]
        begin(first, *words, take="state")
    with pytest.raises(ConfigError, match="the frozen arrays of the loss are not"):
        words = [*frozen, "Experiment.steps=8", "Distill.teacher=@Decoder"]
        begin(first, *words, take="state")


def test_an_imported_model_goes_on_in_ten_lines_and_out_again(
    llama, tiny, tmp_path, monkeypatch
):
    """Its first loss is that of the imported model, and its context length stays."""
    folder, run, out = llama(), tmp_path / "run", tmp_path / "more"
    trained = import_hf(folder, run)
    page = tmp_path / "more.gin"
    tiny_page = f"{lmx.__path__[0]}/../tests/train/tiny.gin"
    page.write_text(CONTINUE.format(tiny=tiny_page, run=run))
    config = lmx.load_experiment(page)
    train_run("more", config, out)
    batch = config.build().data.open().batch_at(0, 0)
    tokens = map(jnp.asarray, (batch.tokens, batch.positions, batch.segments))
    logits = jax.jit(trained.model.__call__)(*tokens)
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    picked = np.take_along_axis(logprobs, batch.targets[..., None], -1)[..., 0]
    loss = -(picked * batch.weights).sum() / batch.weights.sum()
    assert next(read_metrics(out))["nats"] == pytest.approx(float(loss), rel=1e-5)
    recorded = read_init_from(out)
    assert recorded["path"] == str(run) and len(recorded["digest"]) == 32
    lmx.save_hf(lmx.restore(out), tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    was = json.loads((folder / "config.json").read_text())
    assert was.items() <= config.items()
    assert config["max_position_embeddings"] == 64


def test_a_folder_of_hugging_face_gives_what_its_import_gives(llama, tmp_path):
    folder = llama(tie_word_embeddings=True)
    import_hf(folder, tmp_path / "run")
    page = tmp_path / "more.gin"
    tiny_page = f"{lmx.__path__[0]}/../tests/train/tiny.gin"
    page.write_text(CONTINUE.format(tiny=tiny_page, run=tmp_path / "run"))
    states = []
    for words in ([], [f"InitFrom.path={folder}"]):
        experiment = lmx.load_experiment(page, words).build()
        initial = InitialState(experiment.init_from, experiment.open(), {})
        states.append(initial.load())
        origin = initial.facts["init_from"]["origin"]
        assert origin["hf_fields"]["max_position_embeddings"] == 64
    assert_equal(*(state.params for state in states))


@pytest.mark.faults
@pytest.mark.parametrize(
    "words, message",
    [
        (["Decoder.head=@TiedLMHead"], "weights: head.out.w .16, 8.. .*InitFrom.drop"),
        (
            ["Attention.qk_norm=@RMSNorm"],
            "lack parameters .*q_norm.scale.* If that is meant, name all 2 in"
            " InitFrom.new",
        ),
        (["Decoder.vocab=12"], "in other sizes than the model: embedding .8, 16., .*"),
        (
            ["SwiGLU.hidden=48", "InitFrom.resize=*mlp*"],
            "cannot be resized from .2, 32, 16. to .2, 48, 16.: only the number of",
        ),
        (["InitFrom.new=['norm*']"], r"InitFrom.new = \['norm\*'\] names no parameter"),
        (["InitFrom.step=7"], "has no checkpoint of step 7: it has 4, 6"),
        (["InitFrom.path=elsewhere"], "elsewhere/config.json does not exist"),
        (["InitFrom.path=elsewhere", "InitFrom.step=1"], "which is not a run"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trunk, tiny, words, message):
    words = [x.replace("=*mlp*", "=['*mlp*']") for x in words]
    words = [f"InitFrom.path={trunk}", "InitFrom.take=weights", *words]
    experiment = tiny("Experiment.init_from=@InitFrom()", *words).build()
    params = flatten_params(nnx.split(experiment.abstract_model())[1], is_variable)
    with pytest.raises(ConfigError, match=message):
        experiment.init_from.match(experiment.init_from.open({}).shapes, params)


@pytest.mark.faults
def test_a_state_is_taken_as_it_is_and_has_steps_left(trunk, begin):
    with pytest.raises(ConfigError, match="after step 6: Experiment.steps, which co"):
        begin(trunk, "Experiment.steps=6", take="state")
    with pytest.raises(ConfigError, match="leave new, drop and resize empty"):
        begin(trunk, "InitFrom.drop=['head*']", take="state")
    with pytest.raises(ConfigError, match="not those that the run began with"):
        begin(trunk, recorded={"path": f"{trunk}", "digest": "0" * 32})


@pytest.mark.meshes
def test_a_wider_vocabulary_keeps_the_rows_that_were_trained(trunk, tiny, begin):
    """On a mesh of 8 devices; what is new is as in a new model, the head here."""
    words = ["Decoder.vocab=12", "Mesh.fsdp=2", "Mesh.tensor=2"]
    names = ["resize=['embed*']", "drop=['head.*']", "new=['head.*']"]
    state, facts = begin(trunk, *words, *(f"InitFrom.{x}" for x in names))
    assert facts["resize"] == ["embedding"]
    assert facts["new"] == facts["drop"] == ["head.out.w"]
    wanted = by_name(lmx.restore(trunk).params)
    fresh = by_name(tiny(*words).build().open().init().params)
    rows = np.concatenate([wanted["embedding"], fresh["embedding"][8:]])
    wanted |= {"head.out.w": fresh["head.out.w"], "embedding": rows}
    for name, value in by_name(state.params).items():
        np.testing.assert_array_equal(value, wanted[name], name)


@pytest.mark.meshes
def test_weights_alone_are_taken_by_replicas_and_guards_with_a_new_optimizer(
    trunk, begin
):
    words = ["Experiment.local_sgd=@DiLoCo()", "DiLoCo.replicas=2", "Mesh.data=1"]
    words += ["DiLoCo.sync_every=2", "Experiment.guard=@SkipSpikes()"]
    state, facts = begin(trunk, *words)
    trained, replicas = lmx.restore(trunk).params, state.opt_state.params
    for params in (
        state.params,
        jax.tree.map(lambda x: x[0], replicas),
        jax.tree.map(lambda x: x[1], replicas),
    ):
        assert_equal(params, trained)
    assert int(state.step) == 0 and facts["step"] == 6
    assert not any(x.any() for x in by_name(state.opt_state.opt_state).values())
