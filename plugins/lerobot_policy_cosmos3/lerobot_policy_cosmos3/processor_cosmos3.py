"""What LeRobot does to observations before this policy, and to actions behind it.

Nothing is normalised here: the contract says how rows are scaled, and the policy does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lerobot.lerobot_types import PolicyAction
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines

if TYPE_CHECKING:
    from lerobot_policy_cosmos3.configuration_cosmos3 import Cosmos3Config

Before = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
Behind = PolicyProcessorPipeline[PolicyAction, PolicyAction]


def make_cosmos3_pre_post_processors(config: Cosmos3Config, **_handed_to_every_policy: Any) -> tuple[Before, Behind]:
    """Rename keys, add the dimension of the batch, move to the device; behind the policy, back to the processor.

    LeRobot finds this function by its name. The statistics of data sets that it hands over are not used.
    """
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or 'cpu'),
        ],
        output_steps=[DeviceProcessorStep(device='cpu')],
    )
