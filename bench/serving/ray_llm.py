"""The peer: ray.serve.llm on a CPU, with the adapters of a bucket.

    python bench/serving/ray_llm.py FOLDER PORT BUCKET

It loads adapters from S3 only. Its model runs in a process of vLLM's own with as many threads as OMP_NUM_THREADS says.
"""

import signal
import sys
import time

import work


def main(folder: str, port: int, bucket: str) -> None:
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    most = max(work.ADAPTERS)
    one_copy = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
    config = LLMConfig(
        model_loading_config={"model_id": "base", "model_source": f"{folder}/base"},
        accelerator_config={"kind": "cpu"},
        engine_kwargs={
            "dtype": "float32",
            "max_model_len": work.MAX_LENGTH + 1,
            "enforce_eager": True,
            "enable_lora": True,
            "max_lora_rank": work.RANK,
            "max_loras": most,
            "max_cpu_loras": most,
            "max_num_seqs": max(work.CONCURRENT),
        },
        lora_config={"dynamic_lora_loading_path": f"s3://{bucket}", "max_num_adapters_per_replica": most},
        deployment_config=one_copy,
    )
    ray.init(
        address="local",
        num_cpus=3,  # what it asks for to start, whatever there is
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(build_openai_app({"llm_configs": [config], "ingress_deployment_config": one_copy}))
    print("\nready ", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
