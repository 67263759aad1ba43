"""The shipped networks are whole, small and in the layouts of the real ones."""

from safetensors import safe_open

from generation.weights.store import EMBEDDED, ModelPaths

LIMIT_BYTES = 16_000_000
OWN_LIMIT_BYTES = {"triposplat": 3_000_000, "dreamgaussian": 2_000_000}


def test_later_back_ends_have_limits_of_their_own_and_the_others_stay_under_16_megabytes() -> None:
    sizes = {file: file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()}
    others = sum(sizes.values())
    for name, limit in OWN_LIMIT_BYTES.items():
        own = EMBEDDED / name
        size = sum(size for file, size in sizes.items() if file.is_relative_to(own))
        assert 0 < size <= limit
        others -= size
    assert 0 < others <= LIMIT_BYTES


def test_every_part_is_where_its_loader_looks(embedded_paths: ModelPaths) -> None:
    flux = embedded_paths.text_to_image
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert (flux / part / "config.json").is_file()
    for part in ("tokenizer", "tokenizer_2"):
        assert (flux / part / "tokenizer_config.json").is_file()
    assert (flux / "model_index.json").is_file()
    assert (flux / "scheduler" / "scheduler_config.json").is_file()
    assert embedded_paths.cutout.is_file()
    assert (embedded_paths.lift / "config.yaml").is_file()


def test_weights_are_half_precision() -> None:
    for file in EMBEDDED.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            dtypes = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "BF16"}, file
