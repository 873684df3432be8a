"""The simulation finds what is wrong: every fault of a list that is put into the code."""

from __future__ import annotations

import pytest

from simulation.mutations import MUTATIONS, Mutation, mutated
from simulation.world import World

#: Seeds within which a fault must be found; most show in more than a tenth of the worlds of their focus.
SEEDS = 100


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_is_found(mutation: Mutation) -> None:
    seed = _first_broken(mutation)
    # The same world is whole without the fault.
    World(seed, focus=mutation.focus).run()


def _first_broken(mutation: Mutation) -> int:
    with mutated(mutation):
        for seed in range(SEEDS):
            try:
                World(seed, focus=mutation.focus).run()
            except Exception as error:
                print(f"seed {seed}: {type(error).__name__}: {error}")
                return seed
    pytest.fail(f"{SEEDS} seeds find nothing wrong")


def test_a_mutation_without_its_target_fails() -> None:
    mutation = Mutation("nothing", "server.engine:Engine.admit", "what is not there", "")
    with pytest.raises(AssertionError, match="0 times"), mutated(mutation):
        pass
