"""Prompt packs as things to make and to test: words from a language model, and what is wrong with a pack's words."""

from vlad.packs.check import PackCheck as PackCheck
from vlad.packs.check import check_pack as check_pack
from vlad.packs.writing import make_pack as make_pack
