// Contours of density on a grid.

// The surface at a level by "surface nets": a vertex in each cell that the surface passes, at the mean of its crossings
// of the cell's edges, and a quadrilateral around each edge of the grid that it crosses. Vertices are in Å.
function surface(values, grid, level) {
  const [nx, ny, nz] = grid.shape, step = [ny * nz, nz, 1];
  const corners = [], edges = [];
  for (let c = 0; c < 8; c++) corners.push((c & 1) * step[0] + ((c >> 1) & 1) * step[1] + ((c >> 2) & 1) * step[2]);
  for (let c = 0; c < 8; c++) for (const bit of [1, 2, 4]) if (!(c & bit)) edges.push([c, c | bit]);
  const vertices = [], triangles = [], numbers = new Int32Array(values.length);
  for (let x = 0; x < nx - 1; x++) for (let y = 0; y < ny - 1; y++) {
    for (let z = 0, cell = x * step[0] + y * step[1]; z < nz - 1; z++, cell++) {
      let mask = 0;
      for (let c = 0; c < 8; c++) if (values[cell + corners[c]] > level) mask |= 1 << c;
      if (mask === 0 || mask === 255) continue;
      let sx = 0, sy = 0, sz = 0, count = 0;
      for (const [a, b] of edges) {
        if (((mask >> a) & 1) === ((mask >> b) & 1)) continue;
        const da = values[cell + corners[a]], db = values[cell + corners[b]], share = (level - da) / (db - da);
        sx += (a & 1) + share * ((b & 1) - (a & 1));
        sy += ((a >> 1) & 1) + share * (((b >> 1) & 1) - ((a >> 1) & 1));
        sz += ((a >> 2) & 1) + share * (((b >> 2) & 1) - ((a >> 2) & 1));
        count++;
      }
      numbers[cell] = vertices.length / 3;
      vertices.push(x + sx / count, y + sy / count, z + sz / count);
      const at = [x, y, z];
      for (let axis = 0; axis < 3; axis++) {
        const b = (axis + 1) % 3, c = (axis + 2) % 3;
        if ((mask & 1) === ((mask >> (1 << axis)) & 1) || !at[b] || !at[c]) continue;
        let ring = [cell, cell - step[b], cell - step[b] - step[c], cell - step[c]];
        if (!(mask & 1)) ring = ring.reverse();
        const [p, q, r, s] = ring.map((i) => numbers[i]);
        triangles.push(p, q, r, p, r, s);
      }
    }
  }
  const placed = Float32Array.from(vertices, (value, i) => grid.origin[i % 3] + value * grid.voxel[i % 3]);
  return { vertices: placed, triangles: new Uint32Array(triangles) };
}

// The mean density of each block of 2 × 2 × 2 voxels, with its grid: a surface with a quarter of the triangles.
function halved(values, grid) {
  const [nx, ny, nz] = grid.shape, shape = grid.shape.map((n) => Math.floor(n / 2)), [mx, my, mz] = shape;
  const out = new Float32Array(mx * my * mz);
  for (let x = 0, k = 0; x < mx; x++) for (let y = 0; y < my; y++) for (let z = 0; z < mz; z++, k++) {
    let sum = 0;
    for (let c = 0; c < 8; c++)
      sum += values[((2 * x + (c & 1)) * ny + 2 * y + ((c >> 1) & 1)) * nz + 2 * z + (c >> 2)];
    out[k] = sum / 8;
  }
  const voxel = grid.voxel.map((v) => 2 * v), origin = grid.origin.map((o, k) => o + grid.voxel[k] / 2);
  return { values: out, grid: { shape, voxel, origin } };
}

// Bytes on a grid at positions (Å): linear between the grid's points, or those of the nearest point.
function sampled(codes, grid, positions, nearest = false) {
  const [nx, ny, nz] = grid.shape, { origin, voxel } = grid, out = new Float32Array(positions.length / 3);
  const clamp = (value, n) => Math.min(Math.max(value, 0), n - 1.000001);
  for (let i = 0; i < out.length; i++) {
    const [gx, gy, gz] = [nx, ny, nz].map((n, k) => clamp((positions[3 * i + k] - origin[k]) / voxel[k], n));
    if (nearest) {
      out[i] = codes[(Math.round(gx) * ny + Math.round(gy)) * nz + Math.round(gz)];
      continue;
    }
    const x = Math.floor(gx), y = Math.floor(gy), z = Math.floor(gz), fx = gx - x, fy = gy - y, fz = gz - z;
    for (let corner = 0; corner < 8; corner++) {
      const a = corner & 1, b = (corner >> 1) & 1, c = corner >> 2;
      out[i] += (a ? fx : 1 - fx) * (b ? fy : 1 - fy) * (c ? fz : 1 - fz) * codes[((x + a) * ny + y + b) * nz + z + c];
    }
  }
  return out;
}
