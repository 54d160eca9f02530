"""The model class that lmms-eval instantiates."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    Instance,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.model_utils.gen_metrics import (  # pyright: ignore[reportMissingImports]
    log_metrics,
)
from tqdm import tqdm

from omnizip_jax.checkpoint.load import load
from omnizip_jax.evaluation.clip_evaluator import QUESTION_SLOTS, StreamSettings, ask_context
from omnizip_jax.evaluation.lmms.request_parsing import (
    MAX_NEW_TOKENS,
    MediaPart,
    make_method,
    parse_messages,
    parse_sampling,
    until_stop,
)
from omnizip_jax.inference.api import converse
from omnizip_jax.inference.decode import SamplingParams, check_count, check_seed
from omnizip_jax.inference.generation import Answer
from omnizip_jax.inference.generation import TokenCounts as KeptCounts
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.registry import family
from omnizip_jax.window_spec import check_flags

logger = logging.getLogger(__name__)


class OmniZip(lmms):
    """Qwen2.5-Omni with any method of this library, behind lmms-eval's chat interface.

    Videos are read with their audio. With several processes each uses one device. Replies are
    yielded one by one, so that lmms-eval's cache keeps those of an interrupted run. A clip that
    cannot be read gives an empty reply, which is not cached; an unsupported task ends the run.

    Args:
        checkpoint: a folder that ``omnizip convert`` wrote, or "small".
        method: a name in ``METHODS``.
        max_frames: cap on the frames of a long clip.
        grid_slots: video tokens per second; the checkpoint's own by default.
        use_audio, use_video: False leaves that modality out.
        stream: read a clip window by window, into a cache of ``capacity`` slots with the eviction
            policy ``memory``; see ``StreamSettings``.
        dtype: of the computation; the checkpoint's own by default.
        seed: of methods that sample tokens, and of sampling.
        system_prompt: for tasks without one; the model's default by default.
        batch_size, max_batch_size: must be 1; lmms-eval passes them.
        device: ignored; lmms-eval passes it, and jax chooses the device.
        settings: of the method.

    Raises:
        ValueError: an unknown method or setting, an invalid value, an unusable checkpoint.
    """

    is_simple = False

    def __init__(
        self,
        checkpoint: str,
        method: str = "omnizip",
        max_frames: int | None = None,
        grid_slots: int | None = None,
        use_audio: bool = True,
        use_video: bool = True,
        stream: bool = False,
        memory: str = StreamSettings.memory,
        capacity: int = StreamSettings.capacity,
        dtype: str | None = None,
        seed: int = 0,
        system_prompt: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        if str(batch_size) != "1":
            raise ValueError(f"clips are answered one by one: --batch_size 1, not {batch_size}")
        check_flags(use_audio=use_audio, use_video=use_video, stream=stream)
        check_seed(seed)
        self._method = make_method(method, settings)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # before jax looks for its devices
            jax.config.update("jax_cuda_visible_devices", os.environ.get("LOCAL_RANK", "0"))
        self._params = load(checkpoint, dtype=dtype)
        config = self._params.config
        spec = config.spec
        if grid_slots is not None:
            spec = dataclasses.replace(spec, grid_slots=grid_slots)
        family(config).check_spec(spec, config)
        if max_frames is not None:
            check_count("max_frames", max_frames, spec.temporal_patch)
        self._media_options: dict[str, Any] = {
            "spec": spec,
            "max_frames": max_frames,
            "max_windows": None if stream else config.text.max_positions // config.window_positions,
            "use_audio": use_audio,
            "use_video": use_video,
        }
        self._stream = None
        if stream:
            self._stream = StreamSettings(memory, capacity)  # pyright: ignore[reportArgumentType]
            self._stream.init(self._params, self._method, spec, QUESTION_SLOTS + MAX_NEW_TOKENS)
        self._seed = seed
        self._system = system_prompt and self._resolve_system_prompt(system_prompt)
        self._last: tuple[MediaPart, Clip] | None = None
        self._counts: list[KeptCounts] = []
        self._seconds = 0.0
        self.device = "cpu"  # where lmms-eval gathers counts over processes

    def generate_until(self, requests: Sequence[Instance]) -> Iterator[GenerationResult]:
        """Yield a reply to each request, in order."""
        for request in self._progress(requests):
            context, messages_of, settings, doc, task, split = request.args
            reply = self._reply(messages_of(self.task_dict[task][split][doc]), settings)
            self.cache_hook.add_partial("generate_until", (context, settings), reply.text)
            yield reply

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> Iterator[list[str]]:
        """Yield the replies to all rounds of each request; each round is a conversation of its own.

        The task receives the replies so far and returns the next round:
        (messages, whether this is the end, replies, state of the task).
        """
        for request in self._progress(requests):
            context, messages_of, settings, doc, task, split = request.args
            document = self.task_dict[task][split][doc]
            replies, state, messages = [], None, messages_of(document)
            while True:
                replies.append(self._reply(messages, settings).text)
                following = messages_of(
                    document,
                    round_idx=len(replies),
                    previous_output=list(replies),
                    previous_round_info=state,
                )
                if not isinstance(following, tuple) or following[1]:
                    break
                messages, _, _, state = following
            self.cache_hook.add_partial("generate_until_multi_round", (context, settings), replies)
            yield replies

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises ``NotImplementedError``."""
        raise NotImplementedError(
            "omnizip_jax answers questions; take a task whose output_type is generate_until"
        )

    def clean(self) -> None:
        """Log mean token counts; lmms-eval calls this at the end."""
        if self._counts:
            requests = len(self._counts)
            fields = [field.name for field in dataclasses.fields(KeptCounts)]
            total = KeptCounts(*(sum(getattr(x, name) for x in self._counts) for name in fields))
            log_metrics(
                total_elapsed_time=self._seconds,
                total_gen_tokens=total.generated,
                avg_speed=total.generated / self._seconds,
                additional_metrics={
                    "total_requests": requests,
                    **{f"{name}_tokens": getattr(total, name) / requests for name in fields},
                    "kept_share": total.retained,
                },
            )
        super().clean()

    def _progress(self, requests: Sequence[Instance]) -> Iterator[Instance]:
        yield from tqdm(requests, desc="omnizip_jax", unit="request", disable=self.rank != 0)

    def _reply(
        self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> GenerationResult:
        system, parts = parse_messages(messages, self._system)
        sampling = parse_sampling(settings, self._seed)
        try:
            answer = self._answer(system, parts, sampling)
        except (ValueError, OSError) as error:
            logger.error("no reply: %s", error)
            return GenerationResult("")
        self._counts.append(answer.counts)
        self._seconds += sum(answer.seconds.values())
        counts, text = answer.counts, until_stop(answer.text, settings)
        return GenerationResult(text, TokenCounts(counts.kept + counts.text, counts.generated))

    def _answer(
        self, system: str | None, parts: Sequence[str | MediaPart], sampling: SamplingParams
    ) -> Answer:
        loaded = [part if isinstance(part, str) else self._load(part) for part in parts]
        params, method = self._params, self._method
        common = dataclasses.asdict(sampling)
        if self._stream is None:
            return converse(params, loaded, compression=method, system=system, **common)
        clip, question = loaded if len(loaded) == 2 else (None, None)
        if not isinstance(clip, Clip) or not isinstance(question, str):
            raise ValueError("stream=true reads one clip, followed by one question")
        slots = sampling.max_new_tokens + QUESTION_SLOTS
        context = self._stream.read(params, clip, method, slots, system=system, seed=self._seed)
        return ask_context(params, context, question, **common)

    def _load(self, part: MediaPart) -> Clip:
        """Decode a clip, unless it is the last one: tasks often repeat a file."""
        known = isinstance(part.source, str) and self._last is not None and self._last[0] == part
        if not known:
            clip = load_clip(part.source, start=part.start, end=part.end, **self._media_options)
            self._last = part, clip
        assert self._last is not None
        return self._last[1]
