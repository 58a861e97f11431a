"""Recipes as files: what is checked when they are read."""

import pytest

from vlad.forms import shipped
from vlad.learning import recipes
from vlad.learning.scorer import LearnedScorer
from vlad.methods import method_class

GOOD = 'method = "anomalyclip"\ndata = ["mtd"]\n[optimizer]\nlearning_rate = 1e-3\n'


def test_every_shipped_recipe_is_of_a_method_that_learns_and_has_its_paper_in_the_title():
    assert {"anomalyclip", "adaptclip", "adaclip"} <= set(shipped("adapters"))
    for name in shipped("adapters"):
        recipe = recipes.load(name)
        assert issubclass(method_class(recipe.method), LearnedScorer) and "arXiv" in recipe.title and recipe.data


def test_a_file_of_ones_own_is_read_and_an_equal_dict_means_the_same(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    table = {"method": "anomalyclip", "data": ["mtd"], "optimizer": {"learning_rate": 1e-3}}
    assert recipes.load(tmp_path / "mine.toml") == recipes.load(table)
    assert recipes.load(recipes.load(table).to_dict()) == recipes.load(table)


def test_a_second_stage_is_the_first_with_what_is_other_in_it():
    second = {"epochs": 2, "options": {"depth": 3}, "optimizer": {"weight_decay": 0.1}}
    recipe = recipes.load({"method": "anomalyclip", "options": {"n_ctx": 4}, "epochs": 7, "then": second})
    one, two = recipe.stages()
    assert (one.epochs, two.epochs) == (7, 2) and not one.then and not two.then
    assert (one.options, two.options) == ({"n_ctx": 4}, {"n_ctx": 4, "depth": 3})
    assert (two.optimizer.weight_decay, two.optimizer.learning_rate) == (0.1, one.optimizer.learning_rate)
    assert recipes.load(recipe.to_dict()) == recipe and recipes.load({"method": "anomalyclip"}).stages()[0].epochs == 15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("data", "datas"), "mine.toml: datas: unknown key; known: .*did you mean 'data'"),
        (
            GOOD.replace("anomalyclip", "anomalclip"),
            "method: unknown 'anomalclip'.*did you mean 'anomalyclip'",
        ),
        (GOOD + "rate = 1\n", "mine.toml: optimizer.rate: unknown key"),
        (GOOD.replace("1e-3", "0"), "optimizer.learning_rate: expected a number above 0, got 0"),
        (GOOD + 'name = "sgd"\n', "optimizer.name: unknown 'sgd'; known: adam, adamw"),
        (GOOD + "betas = [0.9]\n", "optimizer.betas: expected two numbers"),
        (GOOD + 'schedule = "step"\n', "optimizer.schedule: unknown 'step'"),
        ("epochs = 0\n" + GOOD, "epochs: expected 1 or more, got 0"),
        ('epochs = "many"\n' + GOOD, "epochs: expected a whole number, got 'many'"),
        ("validation = 1.0\n" + GOOD, "validation: expected a share from 0 to below 1"),
        ("method = 3\n", "method: expected text, got 3"),
        (GOOD + "[then]\nepochs = 0\n", "mine.toml: then: epochs: expected 1 or more, got 0"),
        (GOOD + "[then]\nepoch = 2\n", "then: epoch: unknown key; .*did you mean 'epochs'"),
        (GOOD + "[then]\ndata = 'mtd'\n", "then.data: a second stage has the first one's"),
        ("= 1\n", "mine.toml: not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_what_was_expected(tmp_path, text, said):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        recipes.load(tmp_path / "mine.toml")


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        recipes.load(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match=r"unknown recipe 'anomalyclipp'; known: .*did you mean 'anomalyclip'"):
        recipes.load("anomalyclipp")
