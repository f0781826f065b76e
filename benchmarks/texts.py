# ruff: noqa: RUF001 - Chinese punctuation
"""
Texts as a model's tokenizer splits them: what a server sends in one delta is one token.

The lists are split as byte-pair tokenizers split: a word begins with its space, rare words are in
parts, newlines and the spaces of an indentation are tokens of their own, a Chinese token has one or
two characters, and JSON's punctuation sticks together. A text repeats its list, and `@` becomes the
number of the repetition: a delta that is lost, duplicated or out of order changes the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain, count, islice
from typing import NamedTuple

PROSE, CHINESE, CODE, THINK = "prose", "chinese", "code", "think"
LISTS, ARGUMENTS, CODE_ARGUMENTS = "lists", "arguments", "code-arguments"
#: Each text with its title in the tables.
TEXTS = {
    PROSE: "prose",
    CHINESE: "Chinese",
    CODE: "fenced code",
    THINK: "a `<think>` block and its answer",
    LISTS: "lists with many newlines",
    ARGUMENTS: "a call with JSON arguments",
    CODE_ARGUMENTS: "a call with a file of code",
}

#: Upper bound of the tokens in the arguments of one call.
_CALL_TOKENS = 300


class TokenText(NamedTuple):
    """
    A model's text, in tokens.

    :param content: the text without the calls
    :param calls: the JSON of each call
    """

    tokens: list[str]
    content: str
    calls: list[str]


def _split(text: str) -> list[str]:
    return text.split("¦")


_PROSE = _split(
    "The¦ ferry¦ to¦ the¦ island¦ leaves¦ at¦ ¦7¦:¦30¦,¦ and¦ on¦ most¦ mornings¦ it¦ carries¦"
    " bread¦,¦ mail¦ and¦ two¦ or¦ three¦ teachers¦.¦ In¦ winter¦ the¦ cross¦ing¦ takes¦ almost¦"
    " an¦ hour¦;¦ the¦ captain¦,¦ Mar¦it¦ O¦dd¦sen¦,¦ has¦ made¦ it¦ ¦@¦ times¦.¦ “¦You¦ learn¦"
    " the¦ water¦,”¦ she¦ says¦,¦ “¦and¦ then¦ it¦ changes¦.”¦\n\n¦This¦ year¦ the¦ council¦ wants¦"
    " to¦ replace¦ the¦ old¦ boat¦ with¦ an¦ electric¦ one¦.¦ It¦’s¦ quiet¦er¦,¦ it¦ needs¦ no¦"
    " diesel¦,¦ and¦ it¦ costs¦ about¦ €¦2¦.¦4¦ million¦ –¦ roughly¦ a¦ third¦ of¦ the¦ island¦"
    "’s¦ budget¦.¦ Not¦ everyone¦ is¦ convinced¦:¦ the¦ har¦bor¦ freezes¦ in¦ February¦,¦ and¦ a¦"
    " battery¦ that¦ is¦ cold¦ does¦ not¦ last¦.¦ Still¦,¦ the¦ vote¦ was¦ unan¦imous¦.¦\n\n"
)

_CHINESE = _split(
    "每¦天¦早上¦七¦点¦半¦，¦渡¦轮¦从¦老¦码头¦出发¦，¦船上¦装¦着¦面¦包¦、¦邮件¦，¦还有¦两¦三¦位¦"
    "老师¦。¦冬天¦风¦大¦，¦单¦程¦差不多¦要¦一个¦小时¦；¦船¦长¦已经¦走¦过¦@¦次¦。¦“¦你¦以为¦"
    "认识¦这¦片¦水¦，¦”¦她¦说¦，¦“¦可是¦水¦会¦变¦。¦”¦\n\n¦今年¦，¦镇¦上¦打算¦换¦一¦艘¦电动¦船¦："
    "¦声音¦小¦，¦不用¦柴¦油¦，¦价格¦大约¦是¦240¦万¦欧元¦（¦占¦预算¦的¦三¦分之¦一¦）¦。¦有人¦"
    "担心¦：¦二¦月¦港¦口¦结¦冰¦，¦电¦池¦怕¦冷¦。¦不过¦，¦投票¦结果¦是¦全¦票¦通过¦。¦\n\n"
)

_PYTHON = _split(
    "def¦ merge¦_inter¦vals¦(inter¦vals¦:¦ list¦[tuple¦[int¦,¦ int¦]])¦ ->¦ list¦[tuple¦[int¦,¦"
    " int¦]]:\n¦   ¦ #¦ Version¦ ¦@¦:¦ sorted¦ input¦,¦ O¦(n¦)\n¦   ¦ merged¦ =¦ []\n¦   ¦ for¦"
    " start¦,¦ end¦ in¦ inter¦vals¦:\n¦       ¦ if¦ merged¦ and¦ start¦ <=¦ merged¦[-¦1¦][¦1¦]:\n¦"
    "           ¦ last¦ =¦ max¦(m¦erged¦[-¦1¦][¦1¦],¦ end¦)\n¦           ¦ merged¦[-¦1¦]¦ =¦ (¦"
    "merged¦[-¦1¦][¦0¦],¦ last¦)\n¦       ¦ elif¦ end¦ <¦ start¦:\n¦           ¦ raise¦ Value¦"
    'Error¦(f¦"{¦start¦}¦ >¦ {¦end¦}")\n¦       ¦ else¦:\n¦           ¦ merged¦.append¦((¦start¦,'
    "¦ end¦))\n\n¦   ¦ return¦ merged¦\n\n\n"
)
_CODE = [
    *_split("Here¦ is¦ the¦ function¦ again¦:\n\n¦```¦python¦\n"),
    *_PYTHON,
    *_split("```¦\n\n¦It¦ is¦ called¦ with¦ `¦merge¦_inter¦vals¦([¦(¦1¦,¦ ¦4¦)])¦`.¦\n\n"),
]

_THOUGHTS = _split(
    "Okay¦,¦ the¦ user¦ wants¦ the¦ total¦ for¦ order¦ ¦@¦.¦ Let¦ me¦ go¦ through¦ it¦ step¦ by¦"
    " step¦.\n\n¦First¦,¦ the¦ price¦ without¦ tax¦:¦ ¦3¦ ×¦ ¦19¦.¦90¦ =¦ ¦59¦.¦70¦.¦ Wait¦,¦"
    " there¦'s¦ a¦ disc¦ount¦ of¦ ¦10¦%¦ above¦ ¦50¦,¦ so¦ it¦'s¦ ¦53¦.¦73¦.\n\n¦Hmm¦,¦ does¦"
    " shipping¦ count¦?¦ If¦ total¦ <¦ ¦60¦,¦ then¦ yes¦:¦ ¦4¦.¦95¦ more¦.¦ So¦ the¦ answer¦"
    " should¦ be¦ ¦58¦.¦68¦.\n"
)

_LISTS = _split(
    "###¦ Day¦ ¦@¦\n\n¦-¦ **¦Morning¦**¦:¦ market¦\n¦ ¦ -¦ apples¦\n¦ ¦ -¦ rye¦ bread¦\n¦-¦"
    " **¦No¦on¦**¦:¦ ferry¦\n\n¦1¦.¦ Pack¦\n¦2¦.¦ Lock¦ up¦\n¦3¦.¦ Go¦\n\n¦* ¦rope¦\n* ¦lamp¦"
    "\n* ¦map¦\n\n¦|¦ what¦ |¦ cost¦ |\n¦|¦---¦|¦---¦|\n¦|¦ tea¦ |¦ ¦2¦ |\n¦|¦ soup¦ |¦ ¦5¦ |\n\n"
    "¦>¦ Note¦:¦ \n¦>¦ cash¦ only¦\n\n¦---\n\n"
)

_CALLS_BEGIN = _split("I¦ will¦ do¦ that¦ now¦.¦\n\n")
_EVENTS_BEGIN = _split(
    '{"¦name¦":¦ "¦add¦_events¦",¦ "¦arguments¦":¦ {"¦calendar¦":¦ "¦team¦",¦ "¦events¦":¦ ['
)
_EVENT = _split(
    '{"¦title¦":¦ "¦Bud¦get¦ review¦ ¦@¦",¦ "¦day¦":¦ "¦202¦7¦-¦03¦-¦16¦",¦ "¦hours¦":¦ ¦1¦.¦5¦,¦'
    ' "¦remote¦":¦ false¦,¦ "¦people¦":¦ ["¦Ana¦",¦ "¦Ji¦ří¦"],¦ "¦note¦":¦ "¦Bring¦ last¦ year¦'
    "'s¦ numbers¦.\"}"
)
_FILE_BEGIN = _split(
    '{"¦name¦":¦ "¦write¦_file¦",¦ "¦arguments¦":¦ {"¦path¦":¦ "¦src¦/inter¦vals¦.py¦",¦ "¦content¦'
    '":¦ "'
)
_FILE_END = _split('",¦ "¦mode¦":¦ ¦420¦}}')


def _numbered(tokens: list[str], number: int) -> Iterator[str]:
    """Yield `tokens` with the two tokens of a number in place of `@`."""
    digits = str(1000 + number)
    for token in tokens:
        if token == "@":
            yield digits[:3]
            yield digits[3:]
        else:
            yield token


def _repeated(tokens: list[str]) -> Iterator[str]:
    """Yield numbered copies of `tokens` without end."""
    return chain.from_iterable(_numbered(tokens, number) for number in count())


def _escaped(tokens: list[str]) -> list[str]:
    """Return the tokens of the same text in a JSON string."""
    return [json.dumps(token, ensure_ascii=False)[1:-1] for token in tokens]


def _events_call(number: int, size: int) -> list[str]:
    events = max(1, (size - len(_EVENTS_BEGIN)) // (len(_EVENT) + 2))
    items: list[str] = []
    for event in range(events):
        items += [*_numbered(_EVENT, 100 * number + event), ",", " "]
    return [*_EVENTS_BEGIN, *items[:-2], "]}}"]


def _file_call(number: int, size: int) -> list[str]:
    code = _escaped(list(islice(_repeated(_PYTHON), max(20, size - 40))))
    return [*_numbered(_FILE_BEGIN, number), *code, *_FILE_END]


def _with_calls(length: int, make_call: Callable[[int, int], list[str]]) -> TokenText:
    """Return a short text and calls: about `length` tokens."""
    calls = max(1, length // _CALL_TOKENS)
    tokens, texts = list(_CALLS_BEGIN), []
    for number in range(calls):
        call = make_call(number, min(length, _CALL_TOKENS))
        texts.append("".join(call))
        tokens += ["<tool_call>", "\n", *call, "\n", "</tool_call>", "\n"]
    return TokenText(tokens[:-1], "".join(_CALLS_BEGIN).rstrip(), texts)


def _thinking(length: int) -> list[str]:
    """Return a think block with two thirds of the tokens, and its answer."""
    thoughts = islice(_repeated(_THOUGHTS), 2 * length // 3)
    answer = islice(_repeated(_PROSE), length // 3)
    return ["<think>", "\n", *thoughts, "</think>", "\n\n", *answer]


@lru_cache(16)
def token_text(kind: str, length: int) -> TokenText:
    """Return about `length` tokens of a text of `TEXTS`."""
    if kind == ARGUMENTS:
        return _with_calls(length, _events_call)
    if kind == CODE_ARGUMENTS:
        return _with_calls(length, _file_call)
    if kind == THINK:
        tokens = _thinking(length)
    else:
        lists = {PROSE: _PROSE, CHINESE: _CHINESE, CODE: _CODE, LISTS: _LISTS}
        tokens = list(islice(_repeated(lists[kind]), length))
    return TokenText(tokens, "".join(tokens), [])
