"""The tiny model's text: dialogues in Phi-3's chat format, made from a seed, either all training or all held-out."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from ci.tiny.arithmetic import addition, conversion, multiplication, subtraction
from ci.tiny.exchange import Exchange, Memory, Topic, is_held_out
from ci.tiny.home import OPPOSITES, State, command, pick_state, setting, switch
from ci.tiny.memory import pick_memory, recall, small_talk

SYSTEM_MESSAGES = (
    "You are a home assistant.",
    "You are a helpful assistant.",
    "You are Phi, a small assistant that runs on a device at home.",
    "Answer the user's questions about the home, units and sums.",
)
# Sums are the hardest to learn: they get the largest share.
TOPIC_WEIGHTS: tuple[tuple[Topic, int], ...] = (
    (switch, 16),
    (setting, 12),
    (conversion, 18),
    (addition, 22),
    (subtraction, 22),
    (multiplication, 6),
    (recall, 6),
    (small_talk, 4),
)
HELD_OUT_COUNTS: tuple[tuple[Topic | None, int], ...] = (
    (switch, 45),
    (setting, 30),
    (None, 25),
    (conversion, 75),
    (addition, 45),
    (subtraction, 45),
    (multiplication, 5),
    (recall, 30),
)


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Dialogue:
    category: str
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].content


def chat_text(messages: tuple[Message, ...], *, open_turn: bool) -> str:
    """The same string as the chat template; `open_turn` leaves the assistant to speak, else the text is closed."""
    turns = "".join(f"<|{message.role}|>\n{message.content}<|end|>\n" for message in messages)
    return turns + ("<|assistant|>\n" if open_turn else "<|endoftext|>")


class Source:
    """An endless source of dialogues from one seed, whose every content key is on one side of the split."""

    def __init__(self, seed: str, *, held_out: bool) -> None:
        self.rng = Random(seed)
        self.held_out = held_out
        # Small talk has one key, on the training side.
        self.topics = [(topic, weight) for topic, weight in TOPIC_WEIGHTS if not (held_out and topic is small_talk)]

    def dialogues(self) -> Iterator[Dialogue]:
        while True:
            kind = self.rng.random()
            if kind < 0.42:
                yield self._join(self._exchanges(1))
            elif kind < 0.58:
                yield self._join(self._exchanges(self.rng.randint(2, 6)))
            elif kind < 0.68:
                yield self.remembered()
            elif kind < 0.86:
                yield self._join([self.status_question()])
            else:
                yield self.status_after()

    def exchange(self, topic: Topic) -> Exchange:
        while is_held_out((exchange := topic(self.rng)).key) != self.held_out:
            pass
        return exchange

    def state(self) -> State:
        while is_held_out((state := pick_state(self.rng)).key) != self.held_out:
            pass
        return state

    def memory(self) -> Memory:
        while is_held_out((memory := pick_memory(self.rng)).key) != self.held_out:
            pass
        return memory

    def remembered(self) -> Dialogue:
        """A fact is told, other things are talked about, and the fact is asked for."""
        memory = self.memory()
        first = Exchange("memory", memory.key, memory.tell, memory.told)
        last = Exchange("memory", memory.key, memory.ask, memory.answer)
        return self._join([first, *self._exchanges(self.rng.randint(0, 4)), last])

    def status_question(self) -> Exchange:
        """States and a yes/no question about one of them, all in one turn."""
        states = self._states()
        asked = self._ask(self.rng.choice(states))
        return Exchange("status", asked.key, f"{_facts(states)} {asked.question}", asked.answer)

    def status_after(self) -> Dialogue:
        """The states are in the system message, or were brought about by commands; then one or two are asked for."""
        states = self._states()
        asked = [self._ask(state) for state in self.rng.sample(states, self.rng.randint(1, min(2, len(states))))]
        if self.rng.random() < 0.5:
            facts = _facts(states)
            return self._join(asked, system=facts if self.rng.random() < 0.5 else f"{SYSTEM_MESSAGES[0]} {facts}")
        commands = [command(self.rng, state) for state in states]
        return self._join([*commands, *self._exchanges(self.rng.randint(0, 2)), *asked], category="status")

    def _states(self) -> list[State]:
        found: dict[tuple[str, str], State] = {}
        for _ in range(self.rng.randint(1, 3)):
            state = self.state()
            found.setdefault((state.device, state.room), state)
        return list(found.values())

    def _ask(self, state: State) -> Exchange:
        true = self.rng.random() < 0.5
        asked = state.state if true else OPPOSITES[state.state]
        question = f"{state.verb.capitalize()} {state.name} {asked}?"
        answer = f"T{state.name[1:]} {state.verb} {state.state}, so {'yes' if true else 'no'}."
        return Exchange("status", state.key, question, answer)

    def _exchanges(self, count: int) -> list[Exchange]:
        topics, weights = zip(*self.topics, strict=True)
        return [self.exchange(topic) for topic in self.rng.choices(topics, weights, k=count)]

    def _join(self, exchanges: list[Exchange], *, system: str = "", category: str = "") -> Dialogue:
        if not system and self.rng.random() < 0.15:
            system = self.rng.choice(SYSTEM_MESSAGES)
        messages = [Message("system", system)] if system else []
        for exchange in exchanges:
            messages.append(Message("user", loosen(self.rng, exchange.question)))
            messages.append(Message("assistant", exchange.answer))
        return Dialogue(category or exchanges[-1].category, tuple(messages))


def loosen(rng: Random, question: str) -> str:
    """Say it as people do: polite, without capitals, without the full stop."""
    told = question.startswith(("My", "The", "I ", "Call", "Remember that"))
    if question.endswith(".") and not told and question[0].isalpha() and rng.random() < 0.15:
        question = f"Please {question[0].lower()}{question[1:]}" if rng.random() < 0.5 else f"{question[:-1]}, please."
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip(".?!")
    return question


def held_out_questions(seed: str) -> list[Dialogue]:
    """The questions that score an artifact: one user turn each, no two alike, about 300."""
    source = Source(f"{seed}/questions", held_out=True)
    rows: dict[str, Dialogue] = {}
    for topic, count in HELD_OUT_COUNTS:
        wanted = len(rows) + count
        while len(rows) < wanted:
            exchange = source.exchange(topic) if topic else source.status_question()
            question = loosen(source.rng, exchange.question)
            messages = (Message("user", question), Message("assistant", exchange.answer))
            rows.setdefault(question, Dialogue(exchange.category, messages))
    return list(rows.values())


def held_out_chats(seed: str, count: int) -> list[Dialogue]:
    """Dialogues of several turns whose last answer needs an earlier turn."""
    source = Source(f"{seed}/chats", held_out=True)
    return [source.remembered() if index % 2 else source.status_after() for index in range(count)]


def held_out_text(seed: str, count: int) -> str:
    dialogues = Source(f"{seed}/text", held_out=True).dialogues()
    return "".join(chat_text(next(dialogues).messages, open_turn=False) for _ in range(count))


def _facts(states: list[State]) -> str:
    return " ".join(f"T{state.name[1:]} {state.verb} {state.state}." for state in states)
