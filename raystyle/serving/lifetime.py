"""A service ends with the driver that started it, whatever becomes of the driver.

On a Ray that goes on, Serve's actors outlive who started them. A driver that is told to stop takes them down, but it may not
get so far: `ray job stop` kills it three seconds after SIGTERM, and it may be killed without a word. So the ingress, which
lives on, waits for the driver's end too.
"""

import asyncio
from typing import Any


class Driver:
    """An actor that Ray ends with the driver, as it does all that are not detached. Its one call never returns."""

    async def end(self) -> None:
        await asyncio.Event().wait()


def driver() -> Any:
    """An actor that lives exactly as long as this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's own machine, for another one may go without it; and made again should its process be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Driver).options(**options).remote()


async def end_of(driver: Any) -> None:
    """Returns when the driver has ended."""
    from ray.exceptions import ActorDiedError

    try:
        await driver.end.remote()
    except ActorDiedError:  # for good: one that cannot be reached, or starts again, is asked again by Ray
        return
