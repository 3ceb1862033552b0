"""A ``tensorrt`` module that records what it is asked and builds nothing.

Its "plan" is a plan's header followed by the ONNX bytes, so that a test can run what was "built" on
the CPU. The names in it are compared with the real bindings by test_tensorrt_conformance.py.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

HEADER_BYTES = 28
FLOAT = "DataType.FLOAT"
DETAILED_JSON = """{"Layers": [
 {"Name": "Reformatting CopyNode for Input Tensor 0 to conv", "LayerType": "Reformat",
  "Inputs": [{"Name": "mel", "Format/Datatype": "Row major linear FP32"}]},
 {"Name": "conv", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
  "Inputs": [{"Name": "a", "Format/Datatype": "Thirty-two wide channel vectorized Int8 format"}]}
 ], "Bindings": ["mel", "frames"]}"""


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class Memory(bytes):
    """An ``IHostMemory``."""


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> Memory:
        return Memory(self.data + b"+times")


class Config:
    def __init__(self, fake: FakeTensorRT) -> None:
        self._fake = fake
        self.profiling_verbosity: Any = None
        self.hardware_compatibility_level: Any = None
        self.flags: set[str] = {"TF32"}
        self.cache: Cache | None = None

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self._fake.say("workspace", pool, size)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_flag(self, flag: str) -> None:
        assert isinstance(flag, str), "a flag that this release does not have"
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self._fake.say("profile", profile.shapes)
        return -1 if self._fake.refuses_profile else 0

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        accepted = not (cache.data and self._fake.rejects_cache)
        self._fake.say("cache", cache.data, ignore_mismatch, accepted)
        if accepted:
            self.cache = cache
        return accepted

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = (min, opt, max)


class FakeTensorRT:
    """Install with ``monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("10.3.0"))``."""

    def __init__(self, version: str = "10.13.3.9") -> None:
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.no_driver = self.refuses_profile = self.rejects_cache = False
        self.parse_errors: list[tuple[str, str, str]] = []
        self.builds = {"strong": True, "weak": True}
        self.refused: set[bytes] = set()
        self.configs: list[Config] = []
        self.alive: list[str] = []
        self.ports = [("mel", FLOAT), ("frames", FLOAT)]
        self.layers = DETAILED_JSON
        removed = version.startswith("11.")
        flags = ["TF32", "VERSION_COMPATIBLE"] + ([] if removed else ["FP16", "INT8"])
        self.BuilderFlag = SimpleNamespace(**{flag: flag for flag in flags})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.DataType = SimpleNamespace(FLOAT=FLOAT)
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED", LAYER_NAMES_ONLY="NAMES")
        self.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS")
        self.LayerInformationFormat = SimpleNamespace(JSON="JSON")
        self.ILogger = ILogger

    def say(self, *call: Any) -> None:
        self.calls.append(call)

    def said(self, what: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == what]

    def plan(self, onnx: bytes) -> bytes:
        parts = [int(n) for n in self.__version__.split(".")]
        version = bytes([*parts, 0, 0][:4])
        return b"ftrt" + bytes(20) + version + onnx

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        if self.no_driver:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.say("builder")
        return _Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return _Parser(self, network)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        inspector = SimpleNamespace(get_engine_information=lambda form: self.layers)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)


class _Builder:
    def __init__(self, fake: FakeTensorRT, logger: Any) -> None:
        self._fake, self._logger = fake, logger

    def create_network(self, flags: int) -> Any:
        self._fake.say("network", flags)
        ports = [SimpleNamespace(name=n, dtype=t) for n, t in self._fake.ports]
        return SimpleNamespace(
            strong=bool(flags),
            num_inputs=1,
            num_outputs=len(ports) - 1,
            get_input=lambda i: ports[i],
            get_output=lambda i: ports[1 + i],
        )

    def create_builder_config(self) -> Config:
        self._fake.configs.append(Config(self._fake))
        return self._fake.configs[-1]

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Any, config: Config) -> Memory | None:
        fake, typing = self._fake, "strong" if network.strong else "weak"
        fake.say("build", typing, frozenset(config.flags))
        assert fake.alive == ["parser"], "the parser owns the weights and must outlive the build"
        if not fake.builds[typing] or network.onnx in fake.refused:
            self._logger.log(Severity.WARNING, "a warning that nobody needs")
            self._logger.log(Severity.ERROR, "Could not find any implementation\nfor node conv_3")
            return None
        return Memory(fake.plan(network.onnx))


class _Parser:
    def __init__(self, fake: FakeTensorRT, network: Any) -> None:
        self._fake, self._network = fake, network
        fake.alive.append("parser")

    def __del__(self) -> None:
        self._fake.alive.remove("parser")

    def parse(self, model: bytes) -> bool:
        self._fake.say("parse", len(model))
        self._network.onnx = model
        return not self._fake.parse_errors

    @property
    def num_errors(self) -> int:
        return len(self._fake.parse_errors)

    def get_error(self, index: int) -> Any:
        name, operator, text = self._fake.parse_errors[index]
        return SimpleNamespace(
            node_name=lambda: name, node_operator=lambda: operator, desc=lambda: text
        )
