"""The traffic of the demo as pure plans: equal seeds give equal requests at equal times."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

CHAT_TOKENS = (32, 64)
DOCUMENT_TOKENS = (128, 256)
DOCUMENT_SENTENCES = (6, 16)

SYSTEM_MESSAGE = "You work at the desk of a railway station. Answer travellers in two sentences."

_QUESTIONS = (
    "When does the next train to {place} leave?",
    "My connection from {place} was missed. What can I do now?",
    "Is there a quiet coach on the {time} train to {place}?",
    "Can I take a bicycle along to {place} in the {time}?",
    "How much is a return ticket to {place} for two?",
    "Which platform do I need for {place}, and is there a lift?",
    "I left a blue bag on the {time} train from {place}. Whom do I ask?",
    "Is the {time} service to {place} running on holidays?",
)
_PLACES = ("the coast", "the old town", "the airport", "North Bridge", "Millfield", "Harbour East")
_TIMES = ("morning", "noon", "afternoon", "evening", "night")

_SUBJECTS = (
    *("The signal box", "A freight train", "The new timetable", "The track crew"),
    *("The dining car", "An inspector", "The winter storm", "The branch line"),
)
_VERBS = (
    *("delayed", "replaced", "surprised", "followed", "reported", "repaired", "outlived"),
    *("connected", "described"),
)
_OBJECTS = (
    *("the bridge over the river", "two stations in the valley", "every commuter of the town"),
    *("the last steam engine", "a shipment of apples", "the regional council"),
    *("its own predecessor", "the depot behind the market"),
)
_ENDINGS = (
    *("before sunrise", "without any warning", "for eleven years", "at half the cost"),
    *("in spite of the rain", "to everybody's relief", "as the plan had foreseen"),
)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One interactive request and when it arrives."""

    at_s: float
    question: str
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Document:
    """One request of the best-effort backlog."""

    prompt: str
    max_tokens: int
    seed: int


def chat_arrivals(rate: float, duration_s: float, seed: int) -> tuple[ChatTurn, ...]:
    """Poisson arrivals, `rate` per second, of short questions; none at or after `duration_s`."""
    random = Random(f"chat {seed}")
    turns: list[ChatTurn] = []
    at_s = random.expovariate(rate)
    while at_s < duration_s:
        question = random.choice(_QUESTIONS)
        text = question.format(place=random.choice(_PLACES), time=random.choice(_TIMES))
        turns.append(ChatTurn(at_s, text, random.randint(*CHAT_TOKENS), len(turns)))
        at_s += random.expovariate(rate)
    return tuple(turns)


def documents(seed: int) -> Iterator[Document]:
    """A backlog without end."""
    random = Random(f"documents {seed}")
    number = 0
    while True:
        sentences = [_sentence(random) for _ in range(random.randint(*DOCUMENT_SENTENCES))]
        text = f"Report {number}. {' '.join(sentences)}\nThe story continues:"
        yield Document(text, random.randint(*DOCUMENT_TOKENS), number)
        number += 1


def _sentence(random: Random) -> str:
    parts = (random.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS))
    return " ".join(parts) + "."
