"""What follows from hosts: how texts are asked about, and what nobody tried on them."""

from types import SimpleNamespace

import pytest

from portability.config.compose import composed, options
from portability.config.defaults import question, untried
from portability.config.study import checked
from portability.core.specs import HostShape, HostSpec, TaskSpec
from portability.data.sources import DataSource, labels_named, task_spec
from support.studies import study


def host(family, name="a"):
    return HostSpec(name, "", None, "", HostShape(family, {}, 8, 8, 2, 2, 4))


@pytest.fixture(scope="module")
def conf():
    return checked(composed(options(["host_set=own"])))


@pytest.mark.parametrize(("families", "pairs", "asked"), [
    (["llama"], False, "{text}\nQuestion: negative or positive?\nAnswer:"),
    (["t5", "bart"], False, "question: negative or positive? context: {text}"), (["bert"], False, "{text}"),
    (["bert", "llama", "t5"], False, "{text}\nQuestion: negative or positive?\nAnswer:"),
    (["bert", "roberta"], True, "{text} {text_pair}"),
    (["gpt2"], True, "{text}\n{text_pair}\nQuestion: negative or positive?\nAnswer:"),
    (["t5"], True, "question: negative or positive? context: {text} {text_pair}"),
])
def test_the_question_follows_from_the_hosts_families(conf, families, pairs, asked):
    found = labels_named(question(conf.task, [host(family) for family in families], pairs))
    assert found == TaskSpec(asked, ("negative", "positive"), 128)


def test_what_a_study_or_a_set_says_wins(conf):
    said = question(checked(composed(options(["host_set=own", "task.template='{text} so {labels}'",
                                              "task.label_words=[no,yes]"]))).task, [host("t5")], False)
    assert labels_named(said).template == "{text} so no or yes"
    named = DataSource("a", path="b", labels=("ham", "spam", "none"))
    assert task_spec(named, question(conf.task, [host("gpt2")], False)) == TaskSpec(
        "{text}\nQuestion: ham or spam or none?\nAnswer:", ("ham", "spam", "none"), 128)
    many = task_spec(DataSource("a", path="b", labels=tuple(range(1, 10))), said)
    assert many.template == "{text} so which one" and many.label_words == tuple("123456789")


def test_the_embedded_hosts_keep_their_question():
    asked = "question : negative or positive ? {text} answer :"
    assert study("method=lora").grid.task == TaskSpec(asked, ("negative", "positive"), 128)


def test_rates_and_budgets_are_known_or_said_not_to_be(conf):
    def said(hosts, methods, host_set="nano", derived=()):
        grid = SimpleNamespace(pairs=[[host("t5", name) for name in hosts]], budgets=[50, 200],
                               methods=[SimpleNamespace(name=name, learning_rate=3e-3) for name in methods])
        return untried(checked(composed(options([f"host_set={host_set}"]))), grid, dict(derived))

    assert said(["nano-raw-base", "nano-other-base"], ["lora", "prefix"]) == []
    (rates,) = said(["nano-raw-base"], ["lora", "ia3"])
    assert rates.startswith("not tried on nano-raw-base: learning rates (ia3 0.003); choose them")
    (both,) = said(["nano-raw-base", "mine"], ["lora"])
    assert both.startswith("not tried on mine: learning rates (lora 0.003) and budgets (50, 200 updates); ")
    stem = {"mine": {"from": "smollm2-135m-instruct"}}
    assert said(["mine"], ["lora_peft"], "smollm2", stem) == [] != said(["mine"], ["lora_peft"], "smollm2")


def test_a_study_says_what_was_not_tried():
    assert study("+sweep=smoke").warnings == []
    assert "not tried on nano-raw-base" in study("+sweep=smoke", "method=[lora,ia3]").warnings[0]
