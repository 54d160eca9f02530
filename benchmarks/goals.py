"""Goals by row name: on two CPU cores, and on one large GPU."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound on one number of a row: its value, its ratio, or its share of the floor."""

    number: Literal["value", "ratio", "share"]
    least: float | None = None
    most: float | None = None

    def met(self, row: Any) -> bool | None:
        value = getattr(row, self.number)
        if value is None:
            return None
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    def __str__(self) -> str:
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        if self.number == "share":
            return f"{sign} {bound:.0%}"
        return f"{sign} {bound:g}{'x' if self.number == 'ratio' else ''}"


CPU = {
    "compression.published_vs_loop": Goal("ratio", least=10),
    "compression.paper_vs_batched": Goal("ratio", least=1.5),
    "compression.temporaries": Goal("value", most=0.20),
    "prefill.packed_45": Goal("share", least=0.9),
    "prefill.packed_35": Goal("share", least=0.9),
    "prefill.vs_transformers": Goal("ratio", least=1.0),
    "stages.fastv": Goal("share", least=0.85),
    "stages.seats": Goal("share", least=0.85),
    "stages.decode": Goal("ratio", least=0.95),  # no slower, but for noise
    "decode.vs_transformers": Goal("ratio", least=2),
    "quantized.decode_int8": Goal("ratio", least=1.5),
    "quantized.decode_int8_vs_float32": Goal("ratio", least=1),
    "quantized.prefill_int8": Goal("ratio", least=1),
    "quantized.window": Goal("ratio", least=0.95),  # no slower, but for noise
    "quantized.cache": Goal("value", most=0.52),  # half, and a scale for each head
    "first_token.vs_transformers_45": Goal("ratio", least=1.6),
    "questions.second": Goal("value", most=0.05),
    "compile.questions": Goal("value", most=3),  # programs after the first question
    "compile.clips": Goal("value", most=6),
    "evaluate.question": Goal("ratio", least=1.5),
    "stream.bucketed": Goal("ratio", least=1.8),
    "serve.batch": Goal("ratio", least=2),
    "serve.requests_1": Goal("ratio", least=1),
    "serve.requests_4": Goal("ratio", least=1),
    "serve.requests_16": Goal("ratio", least=1),
    "media.realtime": Goal("value", least=25),
    # Times the weights, at the sizes of the real 3B.
    "memory.encoders, 8 windows": Goal("value", most=1.3),
    "memory.first token, all": Goal("value", most=1.3),
    "memory.8 tokens, after all": Goal("value", most=1.3),
    "memory.a streamed window": Goal("value", most=1.3),
    "convert.load_memory": Goal("value", most=1.25),  # times the weights
    "convert.load_int8": Goal("value", most=0.75),  # for the 3B
    "memory.growth, all": Goal("value", most=1.1),  # temporaries of a clip ten times as long
}

# A prefill of 4k tokens, of the machine's matrix rate at the true number of operations.
CPU_PRESETS = {"small": CPU, "experts": {"prefill.full": Goal("share", least=0.6)}}

# For the 7B in bfloat16 at 64 windows on an H200.
GPU = {
    "compression.paper_vs_batched": Goal("value", most=1e-3),
    "compression.temporaries": Goal("value", most=0.20),
    "prefill.packed_45": Goal("ratio", least=2.4),
    "prefill.packed_35": Goal("ratio", least=3.1),
    "prefill.full": Goal("share", least=0.55),
    "first_token.vs_transformers_45": Goal("ratio", least=2),
    "first_token.vs_transformers": Goal("ratio", least=1.2),
    "decode.vs_transformers": Goal("share", least=1 / 1.3),
    "quantized.decode_int8": Goal("ratio", least=1.6),
    "quantized.cache": Goal("value", most=0.52),
    "stream.window": Goal("value", most=10e-3),
    "compile.warm": Goal("value", most=15),
}
