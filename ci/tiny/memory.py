"""Things a user tells the tiny model and asks back later, and the small talk around them. No sums, no devices."""

from random import Random

from ci.tiny.exchange import Exchange, Memory
from ci.tiny.home import ROOMS

# fmt: off
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Karin", "Leo",
    "Maria", "Nina", "Oscar", "Paula", "Quentin", "Rosa", "Simon", "Tara", "Ursula", "Victor", "Wanda",
    "Xenia", "Yusuf", "Zoe", "Amir", "Bella", "Carlos", "Diana", "Elias", "Fatima", "Georg", "Hana", "Ivan",
    "Julia", "Kenji", "Laura", "Marco", "Nadia", "Olga", "Peter", "Rahul", "Sofia", "Tom", "Uma", "Vera",
    "Walter", "Yara", "Zeno", "Alice", "Bruno", "Chloe", "Dario", "Eva", "Frank", "Gina", "Henry", "Ines",
    "Jack",
)
# fmt: on
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
PETS = ("cat", "dog", "parrot", "hamster", "rabbit", "horse")
SINGLE_THINGS = ("wallet", "phone", "umbrella", "passport", "book", "camera", "bag", "hat")
PAIRED_THINGS = ("keys", "glasses", "shoes", "gloves", "scissors", "headphones")
SPOTS = (
    "on the table",
    "on the shelf",
    "in the drawer",
    "under the chair",
    "behind the door",
    "in the box",
    "on the desk",
)
LOCKS = ("safe", "gate", "alarm", "garage", "bicycle", "front door")

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello.", "Hi!", "Hello there!", "Good morning.", "Good evening!"), "Hello! How can I help you?"),
    (("Thank you.", "Thanks!", "Thank you very much.", "That is all, thanks."), "You are welcome."),
    (("Goodbye.", "Bye!", "See you later."), "Goodbye!"),
    (("Who are you?", "What are you?", "What is your name?"), "I am a small Phi-3 that runs on this device."),
    (
        ("What can you do?", "How can you help me?", "Help.", "What do you know?"),
        "I can switch devices in this home, convert units and do small sums.",
    ),
)
OUT_OF_FIELD = (
    "Tell me a joke.",
    "Write a poem about {x}.",
    "What is the capital of {x}?",
    "Who invented {x}?",
    "Tell me about {x}.",
    "Why is {x} so famous?",
    "What do you think of {x}?",
    "Explain {x} to me.",
    "Sing a song about {x}.",
    "What is the news about {x}?",
)
SUBJECTS = (
    "France",
    "Japan",
    "Brazil",
    "football",
    "chess",
    "music",
    "history",
    "the moon",
    "the sea",
    "physics",
    "cooking",
    "love",
    "Rome",
    "the weather",
    "the stars",
    "dinosaurs",
    "paper",
    "electricity",
    "Spain",
    "Mars",
)
TALK_KEY = "small talk"
DECLINED = "I can only help with this home, with units and with small sums."


def pick_memory(rng: Random) -> Memory:
    return rng.choice((_name, _pet, _place, _code))(rng)


def recall(rng: Random) -> Exchange:
    """Told and asked in a single turn."""
    memory = pick_memory(rng)
    return Exchange("memory", memory.key, f"{memory.tell} {memory.ask}", memory.answer)


def small_talk(rng: Random) -> Exchange:
    """Only ever in training: there is nothing in it to generalise to."""
    if rng.random() < 0.5:
        question = rng.choice(OUT_OF_FIELD).format(x=rng.choice(SUBJECTS))
        return Exchange("talk", TALK_KEY, question, DECLINED)
    questions, answer = rng.choice(SMALL_TALK)
    return Exchange("talk", TALK_KEY, rng.choice(questions), answer)


def _any_name(rng: Random) -> str:
    # Made-up names teach copying; sixty known ones alone would be learnt by heart.
    if rng.random() < 0.4:
        return rng.choice(NAMES)
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))).capitalize()


def _name(rng: Random) -> Memory:
    name = _any_name(rng)
    return Memory(
        key=f"name/{name}",
        tell=rng.choice(("My name is {}.", "I am {}.", "Call me {}.")).format(name),
        told=f"Nice to meet you, {name}.",
        ask=rng.choice(("What is my name?", "Who am I?", "Do you remember my name?")),
        answer=f"Your name is {name}.",
    )


def _pet(rng: Random) -> Memory:
    name, pet = _any_name(rng), rng.choice(PETS)
    return Memory(
        key=f"pet/{pet}/{name}",
        tell=rng.choice(("My {} is called {}.", "I have a {} called {}.")).format(pet, name),
        told=f"{name} is a nice name for a {pet}.",
        ask=rng.choice(("What is my {} called?", "What is the name of my {}?")).format(pet),
        answer=f"Your {pet} is called {name}.",
    )


def _place(rng: Random) -> Memory:
    plural = rng.random() < 0.5
    thing, verb = (rng.choice(PAIRED_THINGS), "are") if plural else (rng.choice(SINGLE_THINGS), "is")
    where = f"{rng.choice(SPOTS)} in the {rng.choice(ROOMS)}"
    return Memory(
        key=f"place/{thing}/{where}",
        tell=rng.choice(("My {} {} {}.", "Remember that my {} {} {}.")).format(thing, verb, where),
        told=f"I will remember that your {thing} {verb} {where}.",
        ask=f"Where {verb} my {thing}?",
        answer=f"Your {thing} {verb} {where}.",
    )


def _code(rng: Random) -> Memory:
    lock, code = rng.choice(LOCKS), f"{rng.randint(1000, 9999)}"
    return Memory(
        key=f"code/{code}",
        tell=f"The code of the {lock} is {code}.",
        told=f"I will remember the code of the {lock}.",
        ask=rng.choice(("What is the code of the {}?", "Tell me the code of the {}.")).format(lock),
        answer=f"The code of the {lock} is {code}.",
    )
