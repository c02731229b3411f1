"""The tiny model's home: devices, rooms, and the many ways people ask for one and the same state."""

from dataclasses import dataclass
from random import Random

from ci.tiny.exchange import Exchange

PLURALS = ("lights", "blinds", "curtains", "shutters")
SWITCHED = (
    "lamp",
    "light",
    "lights",
    "fan",
    "heater",
    "radio",
    "television",
    "kettle",
    "oven",
    "dishwasher",
    "speaker",
    "humidifier",
    "printer",
    "toaster",
    "ceiling light",
    "reading lamp",
    "night light",
    "coffee machine",
    "washing machine",
    "air conditioner",
)
OPENED = ("window", "door", "blinds", "curtains", "shutters", "skylight", "gate", "cupboard")
LOCKED = ("door", "window", "gate", "safe", "cabinet")
DIMMED = ("lamp", "light", "lights", "ceiling light", "reading lamp", "night light")
ROOMS = (
    "kitchen",
    "bedroom",
    "bathroom",
    "hall",
    "garage",
    "office",
    "nursery",
    "attic",
    "basement",
    "garden",
    "cellar",
    "study",
    "pantry",
    "workshop",
    "living room",
    "dining room",
    "guest room",
    "laundry room",
)
DEVICES_BY_STATE = dict(on=SWITCHED, off=SWITCHED, open=OPENED, closed=OPENED, locked=LOCKED, unlocked=LOCKED)
OPPOSITES = dict(on="off", off="on", open="closed", closed="open", locked="unlocked", unlocked="locked")
SWITCH_WORDS = (
    "Turn {s} the {d} in the {r}.",
    "Turn the {d} in the {r} {s}.",
    "Switch {s} the {d} in the {r}.",
    "Switch the {d} in the {r} {s}.",
    "Turn {s} the {r} {d}.",
    "Can you turn {s} the {d} in the {r}?",
    "Could you switch the {r} {d} {s}?",
    "I want the {d} in the {r} {s}.",
    "In the {r}, turn the {d} {s}.",
)
MOVE_WORDS = (
    "{v} the {d} in the {r}.",
    "{v} the {r} {d}.",
    "Can you {v} the {d} in the {r}?",
    "In the {r}, {v} the {d}.",
)
MOVE_VERBS = dict(open=("Open",), closed=("Close", "Shut"), locked=("Lock",), unlocked=("Unlock",))
DIM_WORDS = (
    "Dim the {d} in the {r} to {n} percent.",
    "Set the {d} in the {r} to {n} percent.",
    "Set the {r} {d} to {n}%.",
    "Can you dim the {d} in the {r} to {n}%?",
    "Set the brightness of the {d} in the {r} to {n} percent.",
)
HEAT_WORDS = (
    "Set the temperature in the {r} to {n} degrees.",
    "Heat the {r} to {n} degrees.",
    "Make it {n} degrees in the {r}.",
    "I want {n} degrees in the {r}.",
    "Can you set the {r} to {n} degrees?",
)
TIMER_WORDS = ("Set a timer for {n} {u}.", "Remind me in {n} {u}.", "Start a timer for {n} {u}.", "Wake me in {n} {u}.")


@dataclass(frozen=True)
class State:
    """A device, its room, and how it is: `on`, `off`, `open`, `closed`, `locked` or `unlocked`."""

    device: str
    room: str
    state: str

    @property
    def key(self) -> str:
        """Without the state: whoever has seen a device in one state alone takes it for its state everywhere."""
        return f"home/{self.device}/{self.room}"

    @property
    def name(self) -> str:
        return f"the {self.device} in the {self.room}"

    @property
    def verb(self) -> str:
        return "are" if self.device in PLURALS else "is"


def pick_state(rng: Random) -> State:
    state = rng.choice(list(OPPOSITES)) if rng.random() < 0.6 else rng.choice(("on", "off"))
    return State(rng.choice(DEVICES_BY_STATE[state]), rng.choice(ROOMS), state)


def command(rng: Random, wish: State) -> Exchange:
    """A command that brings about the wished state, and what the assistant says when it is done."""
    if wish.state in MOVE_VERBS:
        words = rng.choice(MOVE_WORDS)
        verb = rng.choice(MOVE_VERBS[wish.state])
        verb = verb if words.startswith("{v}") else verb.lower()
        question = words.format(v=verb, d=wish.device, r=wish.room)
    else:
        question = rng.choice(SWITCH_WORDS).format(s=wish.state, d=wish.device, r=wish.room)
    return Exchange("home", wish.key, question, f"T{wish.name[1:]} {wish.verb} now {wish.state}.")


def switch(rng: Random) -> Exchange:
    return command(rng, pick_state(rng))


def setting(rng: Random) -> Exchange:
    kind = rng.choice(("dim", "heat", "timer"))
    room = rng.choice(ROOMS)
    if kind == "dim":
        device, n = rng.choice(DIMMED), rng.randint(1, 100)
        verb = "are" if device in PLURALS else "is"
        question = rng.choice(DIM_WORDS).format(d=device, r=room, n=n)
        answer = f"The {device} in the {room} {verb} now at {n} percent."
        return Exchange("home", f"dim/{device}/{room}", question, answer)
    if kind == "heat":
        n = rng.randint(5, 30)
        question = rng.choice(HEAT_WORDS).format(r=room, n=n)
        return Exchange("home", f"heat/{room}/{n}", question, f"The temperature in the {room} is set to {n} degrees.")
    n, unit = rng.randint(2, 90), rng.choice(("seconds", "minutes", "hours"))
    question = rng.choice(TIMER_WORDS).format(n=n, u=unit)
    return Exchange("home", f"timer/{n}/{unit}", question, f"The timer is set for {n} {unit}.")
