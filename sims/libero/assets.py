"""Files of a task pack that tasks share: textures and meshes, named by the hash of their content.

A texture is capped in size and written again without its colour marks, so that every MuJoCo reads it as linear. A mesh
may change only if nothing of the physics can see it (`visual_only`); such a mesh is written in MuJoCo's binary layout,
with all its triangles or fewer of them. All other meshes stay byte for byte what they were.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

# Sources are our own packages' files; some textures are larger than what Pillow takes for an attack.
Image.MAX_IMAGE_PIXELS = 1 << 28

# Part of every key of the index: raise it when the same source gives another file.
RULES = "2"


@dataclass(frozen=True)
class Variant:
    """What one model file of a pack looks like. `faces` is None where meshes keep all their triangles."""

    name: str
    model: str
    texture_cap: int
    faces: int | None
    kind: str


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "faithful",
            "model.xml",
            512,
            None,
            "textures capped at 512 px; visual-only meshes re-encoded with all their triangles; collision geoms, "
            "inertias and ids unchanged",
        ),
        Variant(
            "fast",
            "model_fast.xml",
            256,
            4000,
            "visual-only meshes simplified to at most 4000 triangles, textures capped at 256 px; collision geoms, "
            "inertias and ids unchanged",
        ),
        Variant(
            "physics",
            "model_physics.xml",
            8,
            12,
            "physics only: visual-only meshes replaced by their bounding boxes, textures at most 8 px; collision "
            "geoms, inertias and ids unchanged",
        ),
    )
}


def write_atomically(path, content):
    """Other processes see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class Store:
    """The shared folder. An index from what went in to what came out saves doing the same work for every task."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.sources = {}

    def source(self, path):
        """Content hash of a source file, read once per process."""
        if path not in self.sources:
            self.sources[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return self.sources[path]

    def once(self, key, extension, make):
        """The name of the file for `key`; `make` gives its bytes if it is not there."""
        digest = hashlib.sha256("|".join([RULES, *map(str, key)]).encode()).hexdigest()[:32]
        note = self.folder / ".index" / digest
        try:
            name = note.read_text()
            if (self.folder / name).is_file():
                return name
        except FileNotFoundError:
            pass
        content = make()
        name = hashlib.sha256(content).hexdigest()[:16] + extension
        if not (self.folder / name).is_file():
            write_atomically(self.folder / name, content)
        write_atomically(note, name.encode())
        return name

    def texture(self, path, cap):
        return self.once(["texture", self.source(path), cap], ".png", lambda: capped(path, cap))

    def unchanged(self, path):
        return self.once(["unchanged", self.source(path)], Path(path).suffix.lower(), Path(path).read_bytes)

    def mesh(self, path, settings, faces, corners):
        """A visual-only mesh. `settings` are the attributes that the corners already contain, such as the scale."""
        key = ["mesh", self.source(path), settings, faces]
        return self.once(key, ".msh", lambda: encode(*fewer(*weld(*corners()), faces)))


def capped(path, cap):
    """A PNG of at most `cap` pixels a side. Means over squares: what the driver's own smaller levels would show."""
    with Image.open(path) as image:
        if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
            raise ValueError(f"{path}: a texture of mode {image.mode} is unknown")
        image = image.convert("RGB")
    largest = max(image.size)
    if largest > cap:
        size = [max(1, round(side * cap / largest)) for side in image.size]
        image = image.resize(size, Image.Resampling.BOX)
    out = BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def visual_only(model, mesh):
    """Whether a mesh may change: it has geoms, and none of them collides, has mass or belongs to group 0."""
    geoms = (model.geom_dataid == mesh) & (model.geom_type == 7)
    seen = (model.geom_contype == 0) & (model.geom_conaffinity == 0) & (model.geom_group != 0)
    return bool(geoms.any() and seen[geoms].all())


def corners(model, mesh):
    """The triangles' corners as the compiler sees them, in the frame of the file: positions, normals and texture
    coordinates (None where the mesh has none), each with three rows per triangle."""

    def part(array, address, count):
        return np.asarray(array[address : address + count], dtype=np.float64)

    faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
    vertices = part(model.mesh_vert, model.mesh_vertadr[mesh], model.mesh_vertnum[mesh])
    normals = part(model.mesh_normal, model.mesh_normaladr[mesh], model.mesh_normalnum[mesh])
    # The compiler moves a mesh into the frame of its inertia.
    rotation = matrix(model.mesh_quat[mesh])
    positions = (vertices @ rotation.T + model.mesh_pos[mesh])[model.mesh_face[faces].ravel()]
    normals = (normals @ rotation.T)[model.mesh_facenormal[faces].ravel()]
    texture = None
    if model.mesh_texcoordadr[mesh] >= 0:
        coordinates = part(model.mesh_texcoord, model.mesh_texcoordadr[mesh], model.mesh_texcoordnum[mesh])
        texture = coordinates[model.mesh_facetexcoord[faces].ravel()]
    return positions, normals, texture


def matrix(quaternion):
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def weld(positions, normals, texture):
    """Equal corners become one vertex; triangles index them."""
    columns = [positions, normals] + ([] if texture is None else [texture])
    rows = np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.float32)
    keys = rows.view([("", np.void, rows.shape[1] * 4)]).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    # In order of first use, so that neighbours stay neighbours.
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    vertices = rows[first[order]]
    triangles = rank[inverse.ravel()].reshape(-1, 3).astype(np.int32)
    return vertices, triangles


def fewer(vertices, triangles, limit):
    """At most `limit` triangles, by quadric edge collapse onto original vertices, so that normals and texture coordinates
    stay those of real surface points. 12 asks for the bounding box."""
    if limit is None or len(triangles) <= limit:
        return vertices, triangles
    if limit == 12:
        return box(vertices)
    import almeshopt

    positions = np.ascontiguousarray(vertices[:, :3])
    indices = np.ascontiguousarray(triangles.ravel(), dtype=np.uint32)
    target = 3 * limit
    # Seams of normals and texture coordinates hold a mesh together; only when they leave too many triangles may they give
    # way, and only then may loose parts that are small beside the mesh be dropped.
    permissive, prune = almeshopt.SIMPLIFY_PERMISSIVE, almeshopt.SIMPLIFY_PRUNE
    attempts = [(0, 1.0), (permissive, 1.0)] + [(permissive | prune, error) for error in (0.003, 0.01, 0.03, 0.1, 0.3)]
    for options, error in attempts:
        kept, _ = almeshopt.simplify(indices, positions, target, target_error=error, options=options)
        if 0 < len(kept) <= target:
            break
    kept = np.asarray(kept, dtype=np.int64).reshape(-1, 3)
    if not 0 < len(kept) <= limit:
        raise ValueError(f"a mesh of {len(triangles)} triangles could not be reduced to {limit}: got {len(kept)}")
    used, renumbered = np.unique(kept, return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3).astype(np.int32)


def box(vertices):
    """The bounding box, with outward normals."""
    low, high = vertices[:, :3].min(axis=0), vertices[:, :3].max(axis=0)
    # A flat mesh still needs a volume.
    high = np.maximum(high, low + 1e-4)
    rows, triangles = [], []
    for axis in range(3):
        for side, normal in ((low, -1.0), (high, 1.0)):
            first = len(rows)
            u, v = [a for a in range(3) if a != axis]
            for a, b in ((0, 0), (1, 0), (1, 1), (0, 1)):
                corner = np.zeros(vertices.shape[1])
                corner[axis] = side[axis]
                corner[u], corner[v] = (low[u], high[u])[a], (low[v], high[v])[b]
                corner[3 + axis] = normal
                rows.append(corner)
            # (u, v, axis) is right-handed for x and z, left-handed for y.
            outward = (normal > 0) == (axis != 1)
            quad = [(0, 1, 2), (0, 2, 3)] if outward else [(0, 2, 1), (0, 3, 2)]
            triangles += [[first + i for i in t] for t in quad]
    return np.array(rows, dtype=np.float32), np.array(triangles, dtype=np.int32)


def encode(vertices, triangles):
    """MuJoCo's binary layout: four counts, positions, normals, texture coordinates, triangles; little-endian."""
    count = len(vertices)
    textured = vertices.shape[1] == 8
    head = np.array([count, count, count if textured else 0, len(triangles)], dtype="<i4")
    parts = [head, vertices[:, :3].astype("<f4"), vertices[:, 3:6].astype("<f4")]
    if textured:
        parts.append(vertices[:, 6:8].astype("<f4"))
    parts.append(triangles.astype("<i4"))
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
