"""Text to train the tokenizer on: written for this package, the same on every machine.

A few thousand sentences are put together from word lists, so that common words become one token;
a little of other languages and of code gives their characters merges too.
"""

import random
import re
from collections.abc import Iterator

_NOUNS = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night
point home water room mother area money story fact month lot right study book eye job word business
issue side kind head house service friend father power hour game line end member law car city
community name president team minute idea body information back parent face others level office
door health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy music market sense nation plan college interest death
experience effect use class control field development role effort rate heart drug show leader light
voice wife police mind price report decision son view relationship town road arm difference value
building action season society tax director position player record paper space ground form event
official matter center couple site project activity star table need court oil situation cost
industry figure street image phone data picture practice piece land product doctor wall news test
movie north love step machine model memory cache queue request answer token batch layer kernel
process thread server client network message buffer block page engine weight vector matrix function
variable string integer list river mountain forest ocean island garden kitchen window bridge
station train bicycle engineer farmer letter language sentence paragraph chapter library museum
theatre weather summer winter autumn spring bread cheese apple orange coffee dinner breakfast
recipe sugar butter salt pepper chicken fish soup
""".split()

_VERBS = """
be have do say go get make know think take see come want look use find give tell work call try ask
need feel become leave put mean keep let begin seem help talk turn start show hear play run move
like live believe hold bring happen write provide sit stand lose pay meet include continue set
learn change lead understand watch follow stop create speak read allow add spend grow open walk win
offer remember love consider appear buy wait serve die send expect build stay fall cut reach kill
remain suggest raise pass sell require report decide pull explain develop carry break receive agree
support hit produce eat cover catch draw choose cause point measure compute schedule allocate
release preempt resume share compare describe return store load sample generate compile deploy
monitor improve reduce
""".split()

_ADJECTIVES = """
good new first last long great little own other old right big high different small large next early
young important few public bad same able human local sure better free real best white special hard
left late whole certain clear recent strong possible common economic true short simple single happy
serious ready open general current red blue green yellow dark bright quick slow warm cold quiet
loud modern ancient careful useful final main similar natural central available private past
foreign fine dead nice huge popular traditional cultural dense sparse linear random stable exact
""".split()

_ADVERBS = """
up so out just now how then more also here well only very even back there down still in as too when
never really most again always often later almost together already however perhaps sometimes
usually quickly slowly carefully finally especially probably actually certainly simply recently
exactly
""".split()

_FUNCTION_WORDS = """
the of and to in a is that for it as was with on at by from his her they we you she he this which
or had but not are an were their one all there been would who will more no if out so what up into
than them can only some could its these may then do first any my now such our over must through
your between after under while before during without against within because although until toward
""".split()

_FRAMES = (
    """
The {a} {n} {w} the {n}. | Why does the {n} {v} {d}? | {P} and {p} {v} {d} in the {a} {n}.
| I {v} the {n} because it is {a}. | You should {v} your {n} before the {n} {w} it.
| It is {a} to {v} a {n}, but {a} to {v} two. | When we {v} the {p}, the {n} was {d} {a}.
| How can I {v} a {a} {n}? | Please {v} the {n} and {v} the {p} {d}.
| They {v} {d} that the {n} of the {n} is {a}. | "What is the {n} of the {p}?" she asked.
| There are {i} {p} in the {n}; {i} of them are {a}. | He didn't {v} it, and I can't {v} it either.
| In {i}, the {n} will {v} {i}% of its {p}. | First, {v} the {n}. Second, {v} the {p}.
| {f} {f} {n} {f} {w} {f} {a} {p}, {f} {f} {n}. | {D}, {f} {p} {f} {f} {v} {f} {n}.
| Here is a list: {n}, {n}, {p} and {p}. | The {n} of {p} is not {a}; it's {a}.
""".strip()
    .replace("\n", " ")
    .split(" | ")
)

_CODE = """
def {n}_{v}(self, {n}: int, {n}: str) -> None:
    if {n} is not None and len({n}) > {i}:
        return self.{n}[{i}]
    for index, {n} in enumerate({n}s):
        print(f"{index}: {{n}}")
    raise ValueError("{n} must be {a}")
class {N}{N}(Base):
    import os, sys, json
    from {n} import {v}, {N}
const {n} = await {v}({n}.{n}, { "{n}": {i}, "{a}": true });
function {v}{N}({n}) { return {n} => {n} + {i}; }
for (int i = 0; i < {i}; ++i) { {n}[i] = {v}({n}, i); }
SELECT {n}, {n} FROM {n}s WHERE {n} = '{a}' ORDER BY {n} DESC LIMIT {i};
{"{n}": {"{n}": {i}.{i}, "{n}": ["{a}", null, false]}}
https://www.{n}{n}.com/{n}/{v}?{n}={i}&{n}={a}
#include <{n}.h>
## {N} {n}
- **{N}**: {a} {n}
| {n} | {i} | {i} |
$ {v} --{n} {i} > /tmp/{n}.log 2>&1
""".strip("\n").split("\n")

_OTHER_LANGUAGES = [
    "Der Hund läuft durch den Wald und sucht seinen Ball, während das Kind am Fluss spielt.",
    "Können Sie mir bitte erklären, warum die Züge heute so spät kommen? Das wäre sehr schön.",
    "Wir haben gestern ein Buch über die Geschichte der Stadt gelesen und viel dabei gelernt.",
    "Le chat dort près de la fenêtre, et la pluie tombe doucement sur les toits de la ville.",
    "Je voudrais savoir où se trouve la gare, parce que mon train part dans dix minutes.",
    "C'est une question très intéressante, à laquelle personne n'a encore trouvé de réponse.",
    "El niño come una manzana en el jardín mientras su abuela prepara la comida de mañana.",
    "¿Dónde está la biblioteca? Necesito un libro sobre los pájaros de América del Sur.",
    "La città è bella d'inverno, quando le strade sono tranquille e l'aria è più fresca.",
    "O menino não sabe onde está o seu coração, mas a canção ainda soa na praia.",
    "Собака бежит по лесу, а дети играют у реки. Сегодня очень хорошая погода.",
    "Почему небо голубое? Потому что воздух сильнее рассеивает короткие волны.",
    "今天的天气很好，我们去公园散步吧。你喜欢喝茶还是咖啡？",
    "这个模型可以回答很多问题，但是有时候也会出错，所以请仔细检查。",
    "今日はとても天気がいいので、公園で本を読みます。コーヒーはいかがですか。",
    "この列車は東京へ行きますか。はい、三時に出ます。ありがとうございます。",
    "오늘은 날씨가 좋아서 공원에 갑니다. 커피를 마시고 책을 읽고 싶어요.",
    "الطقس جميل اليوم، وسنذهب إلى الحديقة بعد الظهر مع الأصدقاء.",
    "Ο σκύλος τρέχει στο δάσος και τα παιδιά παίζουν δίπλα στο ποτάμι.",
    "Köpek ormanda koşuyor, çocuklar nehrin kıyısında oynuyor; hava çok güzel.",
    "🙂 👍 🚀 ✅ ❤️ — “quoted” … ‘single’ • bullet → arrow × 2 ± 1 ≤ 3 € 5 £ 7 °C",
]


_BLANK = re.compile(r"\{([a-zA-Z])\}")


def _with_s(word: str) -> str:
    """The plural of a noun, or the third person of a verb."""
    if word.endswith("y") and word[-2] not in "aeo":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "sh", "ch", "x")) else "s")


_BLANKS = {
    "n": _NOUNS,
    "p": [_with_s(noun) for noun in _NOUNS],
    "v": _VERBS,
    "w": [_with_s(verb) for verb in _VERBS],
    "a": _ADJECTIVES,
    "d": _ADVERBS,
    "f": _FUNCTION_WORDS,
    "N": [noun.capitalize() for noun in _NOUNS],
    "P": [_with_s(noun).capitalize() for noun in _NOUNS],
    "D": [adverb.capitalize() for adverb in _ADVERBS],
    "i": ["0", "1", "2", "3", "5", "8", "10", "12", "16", "42", "64", "100", "256", "1024", "1999"],
}


def training_text(num_lines: int) -> Iterator[str]:
    """Lines of text, always the same."""
    source = random.Random(20)
    for number in range(num_lines):
        if number % 100 == 0:
            yield _OTHER_LANGUAGES[number // 100 % len(_OTHER_LANGUAGES)]
        frame = source.choice(_CODE if number % 12 == 0 else _FRAMES)
        yield _BLANK.sub(lambda blank: source.choice(_BLANKS[blank[1]]), frame)
