"""Sums on CPUs, which releases of JAX's compiler get wrong in forms of their own.

Each process has one compiler with one set of flags: the tests start their own.
"""

import os
import subprocess
import sys
import warnings

import jax
import jaxlib
import pytest

from numpyro_kaem.numerics import device

pytestmark = [
    pytest.mark.numerics,
    pytest.mark.skipif(jax.config.jax_enable_x64, reason="sums in both precisions"),
]

FLAG = "--xla_cpu_experimental_ynn_fusion_type="

# Four sums that are plain JAX, against NumPy; prints the names of those that are wrong.
PATTERNS = """
import jax, jax.numpy as jnp, numpy as np
import numpyro_kaem

def wrong(found, expected, dtype):
    found, scale = np.asarray(found, float), 1 + np.max(np.abs(expected))
    close = np.abs(found - expected) <= 1e3 * np.finfo(dtype).eps * scale
    return not np.all(close)

rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    with jax.enable_x64(dtype == np.float64):
        e = rng.normal(size=(67, 60, 60)).astype(dtype)
        product = jax.jit(lambda e: jnp.sum((e @ jnp.full_like(e, 0.5)) * e, -1))
        if wrong(product(e), 0.5 * (e.sum(-1, keepdims=True) * e).sum(-1), dtype):
            print("product with a constant matrix", dtype.__name__)
        m, r = (rng.normal(size=s).astype(dtype) for s in ((3, 3), (40_000, 3)))
        squares = jax.jit(jax.vmap(lambda r: jnp.sum((m @ r) ** 2)))
        if wrong(squares(r), ((r @ m.T) ** 2).sum(-1), dtype):
            print("squares of small products", dtype.__name__)
        a = rng.normal(size=(1024, 1024)).astype(dtype)
        whole = jax.jit(lambda a: jnp.sum(jnp.broadcast_to(a, (2, 1024, 1024))))
        if any(wrong(whole(a), 2 * a.sum(dtype=float), dtype) for _ in range(50)):
            print("broadcast sum", dtype.__name__)
        x = rng.normal(size=(50, 50)).astype(dtype)
        for n in (6, 7):
            count = jax.jit(lambda x: jnp.sum(x[..., None] * jnp.arange(float(n)), -1))
            if wrong(count(x), x * np.arange(n).sum(), dtype):
                print("sum over counts", dtype.__name__)
"""

# JAX starts first, so without the flag; then the library's own sums, against NumPy.
LATE = """
import warnings
import jax, jax.numpy as jnp, numpy as np
jnp.zeros(3) + 1
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpyro_kaem as kaem
    import numpyro_kaem.numerics.device
    numpyro_kaem.numerics.device.avoid_wrong_sums()
print(*(str(w.message) for w in caught if w.category is RuntimeWarning), sep="\\n")
from numpyro_kaem.infer.weights import METHODS
rng = np.random.default_rng(0)
s = rng.uniform(size=(64, 64)).astype("float32")
for n in (6, 7, 9):
    c = rng.normal(size=(64, n)).astype("float32")
    position = s[..., None].astype(float) * (n - 1) - np.arange(n)
    for basis, profile in (
        (kaem.RBF(0.0, 1.0, n), lambda x: np.exp(-0.5 * x**2)),
        (kaem.RSWAF(0.0, 1.0, n), lambda x: 1 - np.tanh(x) ** 2),
    ):
        for form in (
            lambda s, c: basis.unit_combine(s, c),
            lambda s, c: jnp.sum(basis.unit_features(s) * c, -1),
        ):
            error = np.abs(jax.jit(form)(s, c) - (profile(position) * c).sum(-1))
            assert error.max() < 1e-4, (basis, error.max())
    angles = np.pi * s[..., None].astype(float) * np.arange(1, n + 1)
    features = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    c = rng.normal(size=(64, 2 * n)).astype("float32")
    basis = kaem.Fourier(0.0, 1.0, n)
    summed = jax.jit(lambda s, c: jnp.sum(basis.unit_features(s) * c, -1))
    assert np.abs(summed(s, c) - (features * c).sum(-1)).max() < 1e-4
prior = kaem.KAEMPrior(kaem.Energy(kaem.RSWAF(-1.0, 1.0, n), c[:, :n]))
z = np.linspace(-1, 1, 4001)
density = np.exp(np.asarray(prior.log_prob(z[:, None]), float))
assert np.abs(np.trapezoid(density, z, axis=0) - 1).max() < 1e-4
chosen = METHODS["systematic"](jax.random.key(0), jnp.zeros(7), 7)
assert chosen.tolist() == list(range(7)), chosen
"""


def run(script, **environment):
    """Standard output of a script in a process of its own, on CPUs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA", "JAX"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sums_are_right_once_the_package_is_imported():
    assert run(PATTERNS) == ""


def test_a_late_import_warns_once_and_the_own_sums_hold():
    said = run(LATE).splitlines()
    if device.needs_flag(jaxlib.__version__):
        assert len(said) == 1
        assert said[0].endswith(f"XLA_FLAGS={FLAG}")
    else:
        assert said == []


@pytest.mark.long
def test_the_list_of_wrong_releases_is_kept():
    """A release that is right without the flag ends the list in ``device.py``."""
    wrong = run(PATTERNS, NUMPYRO_KAEM_KEEP_XLA_FLAGS="1")
    assert (wrong != "") == device.needs_flag(jaxlib.__version__)


def flags_after(monkeypatch, *, flags=None, keep=None, version="0.12.0"):
    """``XLA_FLAGS`` after an import with these, in a process that has the flag."""
    for name, value in (("XLA_FLAGS", flags), ("NUMPYRO_KAEM_KEEP_XLA_FLAGS", keep)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(jaxlib, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device.avoid_wrong_sums()
    return os.environ.get("XLA_FLAGS")


def test_flags_are_added_to_and_never_overwritten(monkeypatch, tmp_path):
    for version, expected in [
        # 0.7.2 ends the process at the flag.
        ("0.7.2", False),
        ("0.10.1", False),
        ("0.10.2", True),
        ("0.12.0.1", True),
    ]:
        assert device.needs_flag(version) == expected
    monkeypatch.setattr(device, "_has_faulty_fusions", lambda: False)
    others = "--xla_force_host_platform_device_count=2"
    own = f"{FLAG}LIBRARY_FUSION_TYPE_DOT"
    assert flags_after(monkeypatch) == FLAG
    assert flags_after(monkeypatch, flags=others) == f"{others} {FLAG}"
    assert flags_after(monkeypatch, flags=own) == own
    assert flags_after(monkeypatch, flags=others, keep="1") == others
    assert flags_after(monkeypatch, flags=others, version="0.10.1") == others
    # A file of flags is left as it is.
    monkeypatch.setattr(device, "_has_started", lambda: False)
    file = tmp_path / "flags"
    file.write_text(f"{FLAG}\n")
    assert flags_after(monkeypatch, flags=str(file)) == str(file)
    file.write_text("--xla_force_host_platform_device_count=2\n")
    with pytest.raises(RuntimeWarning, match=f"names the file .*XLA_FLAGS={FLAG}"):
        flags_after(monkeypatch, flags=str(file))
    # Nothing is added for an accelerator alone.
    config = type(device.jax.config)
    monkeypatch.setattr(config, "jax_platforms", "cuda", raising=False)
    assert flags_after(monkeypatch, flags="") == ""
