"""Placement on several devices: a table from logical axes to the axes of a mesh.

Each device holds its part of the heads, of the feed-forward network and of the vocabulary; XLA adds
the communication, two all-reduces in a layer of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MODEL, EXTRA = "model", "ffn"  # axes of a mesh; the second splits only what has no heads

# Mesh axes that split a logical axis. One that is not listed is on every device.
RULES = {
    "heads": (MODEL,),
    "kv_heads": (MODEL,),
    "ffn": (MODEL, EXTRA),
    "vocab": (MODEL, EXTRA),
    "embedding": (MODEL, EXTRA),  # features of the table
    "experts": (MODEL, EXTRA),
    "audio_heads": (MODEL, EXTRA),
    "audio_ffn": (MODEL, EXTRA),
    "vision_heads": (MODEL, EXTRA),
    "vision_ffn": (MODEL, EXTRA),
}
# Others that do not divide are on every device.
REQUIRED = ("heads", "kv_heads", "ffn", "vocab", "experts")


def make_mesh(count: int, sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of ``count`` devices, JAX's first ones by default, for a model of these axis sizes.

    The axis "model" has the largest divisor of devices, heads and key heads, and the axis "ffn"
    the rest: 4 and 2 for the 7B, which has 28 and 4 heads, on 8 devices. So the cache is always
    divided as the heads are.

    Raises:
        ValueError: fewer devices exist.
    """
    devices = jax.devices() if devices is None else devices
    valid = isinstance(count, int) and not isinstance(count, bool)
    if not valid or not 1 <= count <= len(devices):
        raise ValueError(
            f"the number of devices must be from 1 to {len(devices)}, those of JAX, got {count!r}"
        )
    model = math.gcd(count, sizes["heads"], sizes["kv_heads"])
    shape = {MODEL: model} | ({EXTRA: count // model} if model < count else {})
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), types, devices=devices[:count])


def check_mesh(mesh: Mesh, sizes: Mapping[str, int]) -> None:
    """Raise ``ValueError`` unless a model with these sizes of its logical axes fits the mesh."""
    if MODEL not in mesh.shape or any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f'the mesh needs an axis "{MODEL}", and axes of type Auto, got {mesh}: '
            f'jax.make_mesh((devices,), ("{MODEL}",), (jax.sharding.AxisType.Auto,))'
        )
    for axis in REQUIRED:
        count = math.prod(mesh.shape.get(name, 1) for name in RULES[axis])
        if sizes[axis] % count:
            raise ValueError(
                f"{sizes[axis]} {axis} do not divide by {count} devices of the mesh "
                f"{dict(mesh.shape)}: load with mesh=<number of devices>, or take fewer"
            )


def axis_sharding(
    axes: Sequence[str | None], mesh: Mesh, sizes: Mapping[str, int]
) -> NamedSharding:
    """How an array with these logical axes is divided; an axis that does not divide is not."""
    return NamedSharding(mesh, P(*(_mesh_axes(axis, mesh, sizes) for axis in axes)))


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """``jax.device_put``, also onto devices of other processes, which place the same values."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.jit(lambda x: x, out_shardings=sharding)(tree)


def over_heads(
    attend: Callable[..., jax.Array], q: jax.Array, keys: jax.Array, values: jax.Array, *rest: Any
) -> jax.Array:
    """Call a kernel that XLA cannot divide: on each device of the mesh for its own heads.

    Args:
        q, keys, values: [T, N, H], [L, S, K, H], [L, S, K, H]; the cache may be quantised.
        rest: on every device.
    """
    mesh = jax.typeof(jax.tree.leaves(keys)[0]).sharding.mesh
    if mesh.empty:
        return attend(q, keys, values, *rest)
    query, cache = P(None, MODEL), P(None, None, MODEL)
    specs = query, cache, cache, *(P() for _ in rest)
    call = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=query, check_vma=False)
    return call(q, keys, values, *rest)


def table_rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of a table of embeddings: each device reads its own features of them.

    By itself XLA on a GPU gathers the whole table to read a single row.
    """
    mesh = jax.typeof(table).sharding.mesh
    if mesh.empty:
        return table[index]
    axes = _mesh_axes("embedding", mesh, {"embedding": table.shape[-1]})
    specs, out = (P(None, axes), P()), P(*(None for _ in index.shape), axes)
    read = jax.shard_map(
        lambda x, i: x[i], mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
    )
    return read(table, index)


def over_experts(apply: Callable[..., jax.Array], networks: Any, *rest: jax.Array) -> jax.Array:
    """Sum the results of the experts: on each device of the mesh those of its own ones.

    Args:
        apply: of the networks, the number of the first expert in them, and ``rest``.
        networks: ``StackedMatrix`` of all experts, by name.
        rest: on every device.
    """
    stack = jax.tree.leaves(networks)[0]
    mesh, experts = jax.typeof(stack).sharding.mesh, stack.shape[1]
    axes = None if mesh.empty else _mesh_axes("experts", mesh, {"experts": experts})
    if axes is None:
        return apply(networks, 0, *rest)

    def apply_own(networks: Any, *rest: jax.Array) -> jax.Array:
        own = jax.tree.leaves(networks)[0].shape[1]
        return jax.lax.psum(apply(networks, jax.lax.axis_index(axes) * own, *rest), axes)

    own = jax.tree.map(lambda x: P(None, axes) if x.ndim else P(), networks)
    specs = own, *(P() for _ in rest)
    call = jax.shard_map(apply_own, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return call(networks, *rest)


def replicate(tree: Any, weights: Any) -> Any:
    """Have traced arrays on every device of the weights' mesh, if they are on one.

    Small results are, so that the states that begin and that continue have one placement.
    """
    mesh = jax.typeof(jax.tree.leaves(weights)[0]).sharding.mesh
    if mesh.empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def _mesh_axes(axis: str | None, mesh: Mesh, sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    names = [name for name in RULES.get(axis or "", ()) if name in mesh.shape]
    while names and sizes[axis or ""] % math.prod(mesh.shape[name] for name in names):
        names.pop()
    return tuple(names) or None
