"""How much energy this machine uses. `python -m runtimes.system.energy` prints it for another machine that asks."""
