"""The class that lmms-eval makes."""

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
from omnizip_jax.config import check_flags, check_spec
from omnizip_jax.evaluation.lmms.request_parsing import Shown, parts_of
from omnizip_jax.evaluation.lmms.settings import MAX_NEW_TOKENS, decoding_of, method_of
from omnizip_jax.evaluation.watching import QUESTION_ROOM, Watching, ask_alone
from omnizip_jax.inference.api import converse
from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM
from omnizip_jax.inference.decode import SamplingParams, check_count, check_seed
from omnizip_jax.inference.generation import Answer
from omnizip_jax.inference.generation import TokenCounts as Kept
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.registry import family

logger = logging.getLogger(__name__)


class OmniZip(lmms):
    """Qwen2.5-Omni with any method of this library, behind lmms-eval's chat interface.

    Videos are read with their sound. Of several processes each takes one device. Replies come as
    they are made, so that lmms-eval's cache has those of a run that was stopped. A clip that cannot
    be read gives an empty reply, which is no cached one; a task of a form that is not known ends
    the run.

    Args:
        checkpoint: a folder that ``omnizip convert`` wrote, or "small".
        method: a name in ``METHODS``.
        max_frames: cap on the frames of a long clip.
        grid_slots: video tokens a second; the checkpoint's own by default.
        use_audio, use_video: False leaves that modality out.
        stream: read a clip window by window, into a cache of ``capacity`` slots that forgets as
            ``memory`` says; see ``Watching``.
        dtype: to run in another one.
        seed: of methods that draw, and of sampling.
        system_prompt: for tasks that have none.
        batch_size, max_batch_size: 1; lmms-eval gives them.
        device: lmms-eval gives it; which device is used is jax's choice.
        settings: those of the method.

    Raises:
        ValueError: an unknown method or setting, a value that is refused, a bad checkpoint.
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
        memory: str = Watching.memory,
        capacity: int = Watching.capacity,
        dtype: str | None = None,
        seed: int = 0,
        system_prompt: str = DEFAULT_SYSTEM,
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
        self._method = method_of(method, settings)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # before jax looks for its devices
            jax.config.update("jax_cuda_visible_devices", os.environ.get("LOCAL_RANK", "0"))
        self._params = load(checkpoint, dtype=dtype)
        config = self._params.config
        spec = config.spec
        if grid_slots is not None:
            spec = dataclasses.replace(spec, grid_slots=grid_slots)
        check_spec(spec)
        family(config).check_spec(spec, config)
        if max_frames is not None:
            check_count("max_frames", max_frames, spec.temporal_patch)
        self._loading: dict[str, Any] = {
            "spec": spec,
            "max_frames": max_frames,
            "max_windows": None if stream else config.text.max_positions // config.window_positions,
            "use_audio": use_audio,
            "use_video": use_video,
        }
        self._watching = None
        if stream:
            self._watching = Watching(memory, capacity)  # pyright: ignore[reportArgumentType]
            self._watching.begin(self._params, self._method, spec, QUESTION_ROOM + MAX_NEW_TOKENS)
        self._seed, self._system = seed, self._resolve_system_prompt(system_prompt)
        self._last: tuple[Shown, Clip] | None = None
        self._counts: list[Kept] = []
        self._seconds = 0.0
        self.device = "cpu"  # where lmms-eval gathers counts over processes

    def generate_until(self, requests: Sequence[Instance]) -> Iterator[GenerationResult]:
        """Reply to each request, in their order, as they are asked for."""
        for request in self._progress(requests):
            context, messages_of, settings, doc, task, split = request.args
            reply = self._reply(messages_of(self.task_dict[task][split][doc]), settings)
            self.cache_hook.add_partial("generate_until", (context, settings), reply.text)
            yield reply

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> Iterator[list[str]]:
        """Reply to each round of each request; a round is a conversation of its own.

        The task is told the replies so far and says what comes next:
        (messages, whether this is the end, replies, whatever it remembers).
        """
        for request in self._progress(requests):
            context, messages_of, settings, doc, task, split = request.args
            shown = self.task_dict[task][split][doc]
            replies, memory = [], None
            messages = messages_of(shown)
            while True:
                replies.append(self._reply(messages, settings).text)
                following = messages_of(
                    shown,
                    round_idx=len(replies),
                    previous_output=list(replies),
                    previous_round_info=memory,
                )
                if not isinstance(following, tuple) or following[1]:
                    break
                messages, _, _, memory = following
            self.cache_hook.add_partial("generate_until_multi_round", (context, settings), replies)
            yield replies

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises ``NotImplementedError``."""
        raise NotImplementedError(
            "omnizip_jax answers questions; take a task whose output_type is generate_until"
        )

    def clean(self) -> None:
        """Log what was kept, on average; lmms-eval calls this when all is answered."""
        if self._counts:
            requests = len(self._counts)
            fields = [field.name for field in dataclasses.fields(Kept)]
            total = Kept(*(sum(getattr(each, name) for each in self._counts) for name in fields))
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
        system, parts = parts_of(messages, self._system)
        sampling_params = decoding_of(settings, self._seed)
        try:
            answer = self._answer(system, parts, sampling_params)
        except (ValueError, OSError) as error:
            logger.error("no reply: %s", error)
            return GenerationResult("")
        self._counts.append(answer.counts)
        self._seconds += sum(answer.seconds.values())
        text = answer.text
        for stop in settings.get("until") or ():
            text = text.partition(stop)[0] if stop else text
        counts = answer.counts
        return GenerationResult(text, TokenCounts(counts.kept + counts.text, counts.generated))

    def _answer(
        self, system: str, parts: Sequence[str | Shown], sampling_params: SamplingParams
    ) -> Answer:
        loaded = [part if isinstance(part, str) else self._loaded(part) for part in parts]
        params, method = self._params, self._method
        reply = {
            "max_new_tokens": sampling_params.max_new_tokens,
            "temperature": sampling_params.temperature,
            "top_p": sampling_params.top_p,
            "seed": sampling_params.seed,
        }
        if self._watching is None:
            return converse(params, loaded, compression=method, system=system, **reply)
        clip, question = loaded if len(loaded) == 2 else (None, None)
        if not isinstance(clip, Clip) or not isinstance(question, str):
            raise ValueError("stream=true reads one clip, followed by one question")
        slots = sampling_params.max_new_tokens + QUESTION_ROOM
        context = self._watching.watch(params, clip, method, slots, system=system, seed=self._seed)
        return ask_alone(params, context, question, **reply)

    def _loaded(self, shown: Shown) -> Clip:
        """Decode a clip, unless the last one was the same: tasks ask often about one file."""
        known = isinstance(shown.source, str) and self._last is not None and self._last[0] == shown
        if not known:
            loaded = load_clip(shown.source, start=shown.start, end=shown.end, **self._loading)
            self._last = shown, loaded
        assert self._last is not None
        return self._last[1]
