"""The server: FedAvg, wrapped."""

import task
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from nearzip.flower import NearzipStrategy  # nearzip

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Ten rounds, and what they took."""
    strategy = NearzipStrategy(FedAvg(fraction_evaluate=0.0))  # nearzip
    first = ArrayRecord({name: Array(value) for name, value in task.first_model().items()})
    rounds = int(context.run_config.get("num-rounds", 10))
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    model = {name: array.numpy() for name, array in result.arrays.items()}
    print(f"accuracy {task.accuracy(model):.3f}")
    for one in strategy.report:  # nearzip
        print(f"round {one.round}: {one.up} bytes up, {one.down} down, {one.flower_up} as Flower counts them")
