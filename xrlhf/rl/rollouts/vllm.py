"""Answers drawn by vLLM servers, one or several, that hold a copy of the policy."""

from __future__ import annotations

import hashlib
import logging
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from xrlhf.data.reasons import kind_of
from xrlhf.errors import ConfigError, TrainingError
from xrlhf.models.generation import Sampling, stop_ids
from xrlhf.registry import ROLLOUTS
from xrlhf.rl.http import JsonServer
from xrlhf.rl.rollouts.model import WritingModel, sampling_of
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import as_ids

__all__ = ["VllmRollouts"]

logger = logging.getLogger("xrlhf")

_UPDATES = ("weights", "adapter")
_Job = tuple[int, PromptRow]


@ROLLOUTS.register_module()
class VllmRollouts:
    """Answers of vLLM servers, asked through ``/v1/completions`` with token ids.

    Every server draws for itself; each request is one prompt with all of its answers, and the servers take requests as
    they finish others. A server that gives no answer in spite of all attempts is left out for the rest of the call, and
    the others take what it had; only when none is left is that an error. Seeds follow from the key and the prompt's
    index; vLLM batches as it likes, so the same seed gives the same answers up to the noise of floats.

    The log-probabilities are those before temperature, top-p and top-k, which is what ``--logprobs-mode raw_logprobs``
    of the servers says and what they do by default.

    Args:
        urls: Addresses of the servers, such as ``["http://gpu1:8000", "http://gpu2:8000"]``.
        model: The name under which they serve the policy.
        tokenizer: The policy's tokenizer (the builder puts it in).
        sampling: How answers are drawn, a :class:`~xrlhf.models.generation.Sampling` or its fields.
        update: How the servers get new weights, see :meth:`update_weights`: ``"weights"`` or ``"adapter"``.
        policy: The policy (the builder puts it in), for the tokens that end its answers; or None.
        concurrency: Requests that each server has at once, 1 or more.
        timeout: Seconds that one request may take in all.
        retries: Further attempts, see :class:`~xrlhf.rl.http.JsonServer`.
        backoff: Seconds before the second attempt; each further wait is twice as long, up to 30.
        api_key_env: Name of an environment variable with the servers' key; None for none.

    Raises:
        ConfigError: No server, an address that is none, a value outside its range.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        update: Literal["weights", "adapter"] = "weights",
        policy: WritingModel | None = None,
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 1.0,
        api_key_env: str | None = None,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise ConfigError(f"urls must be a list of one or more addresses of vLLM servers, got {urls!r}")
        if concurrency < 1:
            raise ConfigError(f"concurrency must be 1 or more, got {concurrency}")
        if update not in _UPDATES:
            raise ConfigError(f"update must be 'weights' or 'adapter', got {update!r}")
        self.servers = [
            JsonServer(url, timeout=timeout, retries=retries, backoff=backoff, api_key_env=api_key_env) for url in urls
        ]
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling_of(sampling)
        self.update = update
        self.concurrency = concurrency
        if policy is None:
            self.stop_ids = stop_ids(None, tokenizer)
        else:
            with policy.generating() as writer:
                self.stop_ids = stop_ids(writer, tokenizer)
        self._served = model
        self._num_adapters = 0

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        """``k`` answers to each prompt, in order.

        Args:
            rows: The prompts.
            k: Answers to each, 1 or more.
            key: Seeds the draws, 0 or more.

        Raises:
            ConfigError: Fewer than one answer, or several greedy ones, which would all be the same.
            TrainingError: No server gives an answer, or one answers nonsense.
        """
        if k < 1:
            raise ConfigError(f"answers to each prompt must be 1 or more, got {k}")
        if k > 1 and self.sampling.greedy:
            raise ConfigError(f"{k} greedy answers would all be the same: leave greedy out, or ask for one")
        return _Round(self, rows, k, key).run()

    def update_weights(self, folder: str | Path) -> None:
        """Give every server the policy's new weights, which lie in a folder that the servers see under the same path.

        With ``update="weights"`` the folder is a whole model in Hugging Face's layout: the servers read it in the place
        of their own (``/collective_rpc`` with ``reload_weights``) and forget the keys and values of before
        (``/reset_prefix_cache``). They must run with ``VLLM_SERVER_DEV_MODE=1``.

        With ``update="adapter"`` it is a LoRA adapter: it is loaded under a new name, which later requests ask for, and
        the one before is unloaded (``/v1/load_lora_adapter``, ``/v1/unload_lora_adapter``). The servers must run with
        ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``.

        Args:
            folder: The folder.

        Raises:
            TrainingError: A server did not take them: from then on servers would answer by different weights.
        """
        path = str(Path(folder).absolute())
        if self.update == "weights":
            self._tell_all("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
            self._tell_all("/reset_prefix_cache")
            return
        before, self._num_adapters = self._served, self._num_adapters + 1
        # A name of its own: keys and values of the adapter before are known by another name, and never met again.
        name = f"{self.model}-update-{self._num_adapters}"
        self._tell_all("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        self._served = name
        if before != self.model:
            self._tell_all("/v1/unload_lora_adapter", {"lora_name": before})

    def _tell_all(self, path: str, body: Any | None = None) -> None:
        with ThreadPoolExecutor(max_workers=len(self.servers)) as pool:
            for future in [pool.submit(server.tell, path, body) for server in self.servers]:
                future.result()

    def request(self, row: PromptRow, k: int, key: int) -> dict[str, Any]:
        """What a server is asked for a prompt."""
        sampling = self.sampling
        return {
            "model": self._served,
            "prompt": row.prompt_ids.tolist(),
            "n": k,
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": _seed_of(key, row.index),
            "logprobs": 1,
            "return_token_ids": True,
            "stop_token_ids": list(self.stop_ids),
            "skip_special_tokens": True,
            "add_special_tokens": False,
        }

    def read(self, answer: Any, row: PromptRow, k: int) -> list[Sample]:
        """The answers to a prompt.

        Raises:
            ValueError: The answer does not hold them; the message says what was found.
        """
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list):
            raise ValueError(f"the answer is {kind_of(answer)} without a list 'choices'")
        if len(choices) != k:
            raise ValueError(f"{len(choices)} answers came to prompt {row.index}, where {k} were asked for")
        ordered = sorted(choices, key=lambda choice: choice.get("index", 0) if isinstance(choice, dict) else 0)
        return [self._sample(choice, row) for choice in ordered]

    def _sample(self, choice: Any, row: PromptRow) -> Sample:
        if not isinstance(choice, dict) or not isinstance(choice.get("token_ids"), list):
            raise ValueError("a choice has no 'token_ids', which vLLM gives from version 0.10.2 on")
        ids = choice["token_ids"]
        logps = (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(logps, list) or len(logps) != len(ids):
            found = kind_of(logps) if not isinstance(logps, list) else f"{len(logps)} numbers"
            raise ValueError(f"'token_logprobs' of a choice is {found}, for {len(ids)} tokens")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in logps):
            raise ValueError("'token_logprobs' of a choice holds something else than finite numbers")
        if not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
            raise ValueError(f"'token_ids' of a choice to prompt {row.index} holds no tokens")
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise ValueError(f"an answer to prompt {row.index} ended for the reason {reason!r}")
        # No text stops an answer here, so what stopped it is its last token.
        said = ids[:-1] if reason == "stop" else ids
        text = self.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Sample(as_ids(ids), np.array(logps, dtype=np.float32), str(text), reason)


class _Round:
    """One call for answers: a queue of prompts that all servers take from.

    Args:
        rollouts: Who asks.
        rows: The prompts.
        k: Answers to each.
        key: The seed.
    """

    def __init__(self, rollouts: VllmRollouts, rows: Sequence[PromptRow], k: int, key: int) -> None:
        self._rollouts = rollouts
        self._k, self._key = k, key
        self._waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for slot, row in enumerate(rows):
            self._waiting.put((slot, row))
        self._found: list[list[Sample]] = [[] for _ in rows]
        self._num_missing = len(rows)
        self._changed = threading.Condition()
        self._obstacle: TrainingError | None = None
        self._lost: dict[str, TrainingError] = {}

    def run(self) -> list[list[Sample]]:
        servers = self._rollouts.servers
        num = min(self._rollouts.concurrency, max(1, len(self._found)))
        threads = [
            threading.Thread(target=self._serve, args=(server,), daemon=True) for server in servers for _ in range(num)
        ]
        for thread in threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(self._is_over)
        if self._obstacle is not None:
            raise self._obstacle
        if self._num_missing:
            url, error = next(iter(self._lost.items()))
            del url
            raise error
        return self._found

    def _is_over(self) -> bool:
        return not self._num_missing or self._obstacle is not None or len(self._lost) == len(self._rollouts.servers)

    def _serve(self, server: JsonServer) -> None:
        """Ask one server for one prompt after another, as long as there are any and it answers."""
        while True:
            with self._changed:
                # What a lost server had may come back into the queue.
                self._changed.wait_for(lambda: not self._waiting.empty() or self._is_over())
                if self._is_over() or server.url in self._lost:
                    return
                slot, row = self._waiting.get()
            try:
                answer = server.post("/v1/completions", self._rollouts.request(row, self._k, self._key))
                samples = self._rollouts.read(answer, row, self._k)
            except TrainingError as error:
                self._lose(server, error, (slot, row))
                return
            except Exception as error:
                with self._changed:
                    self._obstacle = TrainingError(f"{server.url}: {error}")
                    self._changed.notify_all()
                return
            with self._changed:
                self._found[slot] = samples
                self._num_missing -= 1
                self._changed.notify_all()

    def _lose(self, server: JsonServer, error: TrainingError, job: _Job) -> None:
        with self._changed:
            if server.url not in self._lost:
                self._lost[server.url] = error
                left = len(self._rollouts.servers) - len(self._lost)
                if left:
                    logger.warning("%s; its prompts go to the %d other servers", error, left)
            self._waiting.put(job)
            self._changed.notify_all()


def _seed_of(key: int, index: int) -> int:
    """A seed of 62 bits, so that a server may add the answer's number to it."""
    digest = hashlib.blake2b(f"{key} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
