"""The simulation finds what is wrong: every fault of a list that is put into the code."""

from __future__ import annotations

import pytest

from simulation.mutations import MUTATIONS, Mutation, mutated
from simulation.world import World

#: Seeds within which a fault must be found.
SEEDS = 5000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_is_found(mutation: Mutation) -> None:
    with mutated(mutation):
        for seed in range(SEEDS):
            try:
                World(seed).run()
            except Exception as error:
                print(f"seed {seed}: {type(error).__name__}: {error}")
                return
    pytest.fail(f"{SEEDS} seeds find nothing wrong")


def test_a_mutation_without_its_target_fails() -> None:
    mutation = Mutation("nothing", "server.engine:Engine.admit", "what is not there", "")
    with pytest.raises(AssertionError, match="0 times"), mutated(mutation):
        pass
