"""What a training run will take, before it runs: bytes, operations, traffic, time."""

from synthalign.plan.live import Live as Live
from synthalign.plan.memory import SHARDED as SHARDED
from synthalign.plan.memory import Memory as Memory
from synthalign.plan.memory import Spread as Spread
from synthalign.plan.memory import memory_of as memory_of
from synthalign.plan.optimizers import OptimizerCost as OptimizerCost
from synthalign.plan.optimizers import optimizer_cost as optimizer_cost
from synthalign.plan.traffic import Traffic as Traffic
from synthalign.plan.traffic import traffic_of as traffic_of
from synthalign.plan.weightless import Weights as Weights
from synthalign.plan.weightless import quantise as quantise
from synthalign.plan.weightless import weigh as weigh
from synthalign.plan.weightless import weightless as weightless
