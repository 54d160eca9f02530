"""Reading of replies as a person reads them: the option that a reply chooses, or its free answer.

The published scripts of a benchmark have rules of their own, such as the first character of a
reply; ``protocols`` has them. The functions here read the common forms of an answer, and return
None for a reply that names no option, or several.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from omnizip_jax.evaluation.question_file import LETTERS, normalised

_END = r"(?![A-Za-z0-9]|['-][A-Za-z])"
_LETTER = rf"(?<![A-Za-z0-9'-])(?P<letter>[A-Za-z]){_END}"
_CAPITAL = rf"(?<![A-Za-z0-9'-])(?P<letter>(?-i:[A-Z])){_END}"
# Further letters: "A and B" chooses neither of them.
_MORE = rf"(?P<more>(?:[\s)]*(?:[,/&+]|and\b|or\b)[\s(]*(?-i:[A-Z]|[a-z](?=\W*\Z)){_END})*)"
_BETWEEN = (  # words between the announcement of an answer and its letter
    r"(?:[\s:=.,(\[\"'-]|\b(?:is|was|be|would|should|could|must|might|to|of|for|among|from|the|this|"
    r"these|my|your|given|above|here|question|video|clip|most|best|likely|probably|definitely|"
    r"clearly|final|correct|right|options?|choices?|letter|answer|one|i|think|it|it's|choose)\b){0,60}"
)
_ANSWER = rf"\b(?:answers?|ans|correct (?:option|choice|letter|one))\b{_BETWEEN}{_LETTER}{_MORE}"
_CONFIRMED = (
    rf"(?<!and )(?<!or ){_CAPITAL} (?:is|seems|must be) (?:the )?(?:correct|right|best|answer)"
)
_LABEL = (
    rf"(?:\A|\n)\s*[(\[]?(?P<letter>[A-Za-z])(?:\s*[.):\]](?!\w\.)|(?!,? (?-i:[A-Z]){_END})"
    r"(?-i:(?<=[A-Z]))(?:[,;]| [-–—] | because\b| since\b| as\b))"
)
_CHOICE = (
    r"\b(?:options?|choices?|letter|choose|chose|pick|select|go(?:ing)? with|guess|say|it's|it is)"
    rf"\b{_BETWEEN}{_LETTER}{_MORE}"
)
_BRACKETS = r"(?<![A-Za-z0-9])[(\[]?(?P<letter>[A-Za-z])[)\]]"

_NOT_CHOSEN_BEFORE = re.compile(  # a negation, or a name such as "speaker A"
    r"\b(?:(?:not|isn't|cannot|can't|never|neither|nor|unlike|except|than|instead of|exclude|"
    r"eliminate|rule out)(?: (?:be|the|options?|choice|answer|letter))*|person|speaker|team|group|"
    r"plan|type|vitamin|player|part|point|class|note|chord|room|figure)[\s(\"]*\Z",
    re.IGNORECASE,
)
_NOT_CHOSEN_AFTER = re.compile(  # a dismissal, or the rest of a name such as "D minor"
    r"[\s):\"'-]*(?:(?:(?:is|was|are|seems|looks|can be|would be) )?(?:\w+ly )?(?:wrong|incorrect|"
    r"false|eliminated|excluded|ruled out|impossible|unlikely)|(?:is|was|are|seems|does|can|would)"
    r" ?not|isn't|can't|doesn't|major|minor|flat|sharp)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(  # what follows an "A" or "I" that is a word
    r"\s+(?!(?:is|it|was|and|or|because|since|as|would|seems|fits|matches|but|for|based)\b)\w"
)
_MARKUP = (
    (r"(?s)\A.*</think>|<think>.*\Z", ""),
    (r"(?s)\A.*<answer>(.*?)(?:</answer>.*)?\Z", r"\1"),
    (r"(?s)\A.*\\boxed\{(?:\\text\{)?([^{}]*)\}.*\Z", r"\1"),
    (r"[*_`#$]+|</?\w+>", ""),
    ("’", "'"),
)
_PUNCTUATION = " \n\t.,:;!?()[]{}\"'"
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_NUMBERS = {word: float(value) for value, word in enumerate(_WORDS.split())}
_NUMBERS |= {"never": 0.0, "none": 0.0, "once": 1.0, "twice": 2.0}


def read_choice(reply: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a reply chooses; None if it names none, or several.

    In this order: a letter alone in the first or the last line; the text of an option; the last
    announced answer ("the answer is B"); a confirmed letter ("B is correct"); a label at the
    beginning ("B. some text"), unless all options are labelled; a named option ("option B", "it's
    b)"); the only capital in the reply, or in its last sentence; the only option whose text occurs.

    Args:
        options: their texts, without letters in front.
    """
    text, letters = _plain(reply), LETTERS[: len(options)]
    lines = [line.strip(_PUNCTUATION).upper() for line in text.strip().split("\n")]
    if alone := [line for line in (lines[0], lines[-1]) if line in set(letters)]:
        return _only(alone)
    texts = [normalised(_plain(option)) for option in options]
    if texts.count(normalised(text)) == 1:
        return letters[texts.index(normalised(text))]
    if announced := list(_chosen(_ANSWER, text, letters)):
        return _only(announced[-1])
    rules = [_CONFIRMED, _LABEL, _CHOICE, _BRACKETS, _CAPITAL]
    if set(_chosen(rf"{_CAPITAL}\s*[.):]", text, letters)) == set(letters):
        rules = [_CONFIRMED, _CHOICE]  # the reply repeats all options
    places = [(rule, text) for rule in rules]
    places.append((_CAPITAL, re.split(r"[.?!;\n]", text.rstrip(_PUNCTUATION))[-1]))
    for rule, place in places:
        if letter := _only("".join(_chosen(rule, place, letters))):
            return letter
    return _only([letters[at] for at in _occurring(texts, normalised(text))])


def read_free(reply: str, answer: str) -> str | None:
    """The answer in a reply: Yes, No or a number if ``answer`` is one, otherwise its text.

    None if Yes, No or a number is expected, and the reply has none, or several.
    """
    text, expected = normalised(_plain(reply)), normalised(answer)
    text = re.sub(r"\A(?:(?:so|the|my|final|correct)\b,? ?)*answer\b(?: is)?[\s:=]*", "", text)
    if expected in ("yes", "no"):
        first = re.match(r"(?:yes|no)\b(?! (?:and|or)\b)", text)
        return first[0] if first else _only(re.findall(r"\b(?:yes|no)\b", text))
    if (number := _numbers(expected)) and len(expected.split()) == 1:
        found = _numbers(text)
        return expected if found == number else _only([f"{each:g}" for each in found])
    return re.sub(r"\A(?:it is|it's|this is|that is) ", "", text)


def _plain(text: str) -> str:
    """Text without markup and reasoning, in plain letters."""
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    return text


def _chosen(rule: str, text: str, letters: str) -> Iterator[str]:
    """The letters of every place where a rule finds one: several if they are joined."""
    for match in re.finditer(rule, text, re.IGNORECASE):
        start, end = match.span("letter")
        word = match["letter"] in "AaI" and _ARTICLE.match(text, end)
        before = text[max(0, start - 60) : start]
        dismissed = _NOT_CHOSEN_AFTER.match(text, end) or _NOT_CHOSEN_BEFORE.search(before)
        if match["letter"].upper() in letters and not (word or dismissed):
            more = re.findall(r"\b[A-Za-z]\b", match.groupdict().get("more") or "")
            yield "".join([match["letter"], *more]).upper()


def _occurring(texts: Sequence[str], reply: str) -> list[int]:
    """Options whose text occurs in a reply, without those that are a part of another one."""
    found = []
    for number, text in enumerate(texts):
        place = re.search(rf"(?<!\w){re.escape(text)}(?!\w)", reply)
        if (
            (len(text) > 1 or text.isdigit())
            and place
            and not _NOT_CHOSEN_BEFORE.search(reply[: place.start()])
        ):
            found.append(number)
    return [n for n in found if not any(texts[n] in texts[m] and n != m for m in found)]


def _numbers(text: str) -> set[float]:
    """The numbers in digits, or if there are none, those in words."""
    digits = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)
    if digits:
        return {float(each.replace(",", "")) for each in digits}
    return {_NUMBERS[word] for word in re.findall(r"[a-z-]+", text) if word in _NUMBERS}


def _only(found: Sequence[str]) -> str | None:
    """The one value in a sequence; None if it has none, or several."""
    return found[0] if len(set(found)) == 1 else None
